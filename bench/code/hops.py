"""The stops of a request: modules that an admission passes in the router, functions that a token passes.

A simulated cluster runs with a profiler in each process (call_counter/sitecustomize.py). What is called at
least once for each admission, or for each token, is a stop; what happens now and then is none.
"""

import itertools
import json
import os
import queue
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import yaml

from bench.cluster import Cluster, running
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc

_APISERVER = "hops"
_HOOK = Path(__file__).parent / "call_counter"
_ADMISSIONS, _TOKENS = 20, 200
_SHARE = 0.9  # of the admissions or tokens: below it, a call is not made for each of them
_REPORT_SECONDS = 10.0
_BLOCK_TOKENS = 16

# The module that takes the messages of apiservers. Other calls run meanwhile, which pass others.
_TAKES_IT = "router.calls"

# What an engine does for a token, simulated or not, and what stands beside the way to the user: a transport
# also looks for connections now and then, which on a busy machine is as often as there are tokens.
_BESIDE_THE_WAY = ("core.", "engines.", "kvstore.", "metrics.", "transfer.")


@dataclass(frozen=True, slots=True)
class Function:
    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of each function so far, and the chains of modules on the stack since the last report."""

    times: Counter[Function]
    chains: Mapping[Function, list[list[str]]]


@dataclass(frozen=True, slots=True)
class Hops:
    """What an admission passes in the router, from its message to the answer: the longest chain of modules
    that call each other, and all modules. What a token passes from the decode engine to the user."""

    admission_chain: list[str]
    admission_modules: list[str]
    token_functions: list[str]
    token_modules: list[str]


def count(tree: Path) -> Hops:
    manifest = yaml.safe_load((tree / "examples" / "sim.yaml").read_text())
    manifest["spec"]["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    model = manifest["spec"]["models"]["primary"]["name"]
    with _counting(tree) as folder, running(manifest) as cluster:
        counter = _Counter(cluster, folder)
        admission = counter.during(["router-0"], lambda ask: _admit(cluster, model, ask))
        token = counter.during(["decode-0", "apiserver-0"], lambda ask: _generate(cluster, model, ask))
    admitting = list(_passed(admission, _ADMISSIONS))
    passing = [one for one in _passed(token, _TOKENS) if not one.module.startswith(_BESIDE_THE_WAY)]
    return Hops(
        max((chain for one in admitting for chain in admission.chains[one] if _TAKES_IT in chain), key=len),
        sorted({one.module for one in admitting}),
        sorted(f"{one.module}: {one.name}" for one in passing),
        sorted({one.module for one in passing}),
    )


@contextmanager
def _counting(tree: Path) -> Iterator[Path]:
    """All processes that are started meanwhile run the tree's code, and count. Yields the reports' folder."""
    before = os.environ.get("PYTHONPATH", "")
    source = str((tree / "src").resolve())
    with tempfile.TemporaryDirectory(prefix="llmserve-hops-") as folder:
        path = os.pathsep.join([str(_HOOK), source, before])
        os.environ |= {"LLMSERVE_COUNT_CALLS": folder, "PYTHONPATH": path}
        try:
            yield Path(folder)
        finally:
            del os.environ["LLMSERVE_COUNT_CALLS"]
            os.environ["PYTHONPATH"] = before


class _Counter:
    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder, self._numbers = cluster, folder, itertools.count()

    def during(self, roles: list[str], act: Callable[[Callable[[], Calls]], Calls]) -> Calls:
        """The calls in these roles while `act` runs, up to the moment that it asks for them."""
        before = self._ask(roles).times
        calls = act(lambda: self._ask(roles))
        return Calls(calls.times - before, calls.chains)

    def _ask(self, roles: list[str]) -> Calls:
        number = next(self._numbers)
        partial = self._folder / "ask.partial"
        partial.write_text(str(number))
        partial.rename(self._folder / "ask")
        times, chains = Counter[Function](), dict[Function, list[list[str]]]()
        for role in roles:
            for path, name, count, found in self._read(self._cluster.pid(role), number):
                function = Function(_module(path), name)
                times[function] += count
                chains[function] = [list(map(_module, chain)) for chain in found]
        return Calls(times, chains)

    def _read(self, pid: int, number: int) -> list[tuple[str, str, int, list[list[str]]]]:
        path, deadline = self._folder / f"{pid}-{number}.json", time.monotonic() + _REPORT_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {pid} does not report its calls")
            time.sleep(0.05)
        report: list[tuple[str, str, int, list[list[str]]]] = json.loads(path.read_text())
        return report


def _admit(cluster: Cluster, model: str, ask: Callable[[], Calls]) -> Calls:
    """Admits requests one after another, as an apiserver of its own, and asks before it gives them back."""
    admits = [
        router_pb2.Admit(
            request_id=f"hop-{number}",
            model=model,
            prompt_tokens=2 * _BLOCK_TOKENS,
            max_output_tokens=8,
            block_hashes=[bytes([number]) * 32, bytes([100 + number]) * 32],
            block_tokens=_BLOCK_TOKENS,
        )
        for number in range(_ADMISSIONS + 1)
    ]
    shown = cluster.credentials(CallerRole.APISERVER, _APISERVER).metadata()
    with grpc.insecure_channel(cluster.role("router-0")["listen"]) as channel:
        stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
        session = _Session(stub, shown)
        for admit in admits:
            session.admit(admit)
        return ask()


class _Session:
    def __init__(self, stub: Any, shown: tuple[tuple[str, str], ...]) -> None:
        """shown: metadata that says who calls."""
        self._outbox: queue.SimpleQueue[router_pb2.RouterSessionRequests] = queue.SimpleQueue()
        self._put(router_pb2.RouterSessionRequest(hello=router_pb2.Hello(apiserver_id=_APISERVER)))
        batches = stub.Session(iter(self._outbox.get, None), metadata=shown)
        self._answers = itertools.chain.from_iterable(batch.messages for batch in batches)

    def _put(self, message: router_pb2.RouterSessionRequest) -> None:
        self._outbox.put(router_pb2.RouterSessionRequests(messages=[message]))

    def admit(self, admit: router_pb2.Admit) -> None:
        self._put(router_pb2.RouterSessionRequest(admit=admit))
        answer = next(one for one in self._answers if one.WhichOneof("message") in ("placed", "refused"))
        if answer.HasField("refused"):
            raise RuntimeError(f"the router refuses: {answer.refused.message}")


def _generate(cluster: Cluster, model: str, ask: Callable[[], Calls]) -> Calls:
    body = {
        "model": model,
        "prompt": list(range(1000, 1032)),
        "max_tokens": _TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=60) as response:
        response.raise_for_status()
        for _ in response.iter_lines():
            pass
    return ask()


def _passed(calls: Calls, times: int) -> Iterator[Function]:
    """What was called for each of so many. Comprehensions and lambdas are parts of their function."""
    for function, count in calls.times.items():
        if count >= _SHARE * times and not function.name.endswith(">"):
            yield function


def _module(path: str) -> str:
    return path.rpartition(f"{os.sep}llmserve{os.sep}")[2].removesuffix(".py").replace(os.sep, ".")
