"""What clients notice when a part of the cluster is killed, or hangs, under load: nothing, or what.

Clusters of real processes with simulated engines, one with two workers of each role and one with a single
worker of each. 8 clients send streamed requests, and at a quarter of them one process is killed with SIGKILL,
or stopped with SIGSTOP as if it hung, one case at a time. What the simulated engines say is known beforehand,
so every answer is checked token by token. With `--real`, vLLM, fewer requests, and the same answers are asked
for once before anything is killed.

Clients retry in one case only: an apiserver's connections die with it, so they take the other one.
"""

import argparse
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.cluster import Cluster, running
from bench.processes.survival_client import Answer, Client, expected_tokens
from bench.table import markdown

REQUESTS, CLIENTS = 800, 8
REAL_REQUESTS = 40
PROMPT_TOKENS, OUTPUT_TOKENS = 200, 24
_BACK_SECONDS = 150.0
_WINDOW_SECONDS = 0.25
_BACK_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Case:
    """name: what is killed or stopped, for people. role: its process; child: not itself, but its engine's
    process. stop: it is sent SIGSTOP; else SIGKILL."""

    name: str
    role: str
    child: bool = False
    stop: bool = False


CASES = (
    Case("nothing", ""),
    Case("a decode worker", "decode-0"),
    Case("a prefill worker", "prefill-0"),
    Case("the router", "router-0"),
    Case("the KV manager", "kvmanager-0"),
    Case("an apiserver (clients take the other)", "apiserver-0"),
    Case("everything but the supervisor", "*"),
    Case("a decode worker hangs", "decode-0", stop=True),
    Case("a prefill worker hangs", "prefill-0", stop=True),
    Case("the router hangs", "router-0", stop=True),
    Case("the KV manager hangs", "kvmanager-0", stop=True),
    Case("an apiserver hangs (clients take the other)", "apiserver-0", stop=True),
)
SINGLE_CASES = (
    Case("the only decode worker", "decode-0"),
    Case("the only prefill worker", "prefill-0"),
    Case("the only decode worker hangs", "decode-0", stop=True),
    Case("the only prefill worker hangs", "prefill-0", stop=True),
)
REAL_CASES = (
    Case("a decode worker", "decode-0"),
    Case("a prefill worker", "prefill-0"),
    Case("an engine's child process (vLLM EngineCore)", "decode-1", child=True),
    Case("an engine's child process hangs", "decode-1", child=True, stop=True),
)


@dataclass(slots=True)
class Run:
    """The answers of a case. killed_at, back_at: on time.monotonic; 0 while they have not been."""

    answers: list[Answer] = field(default_factory=list)
    killed_at: float = 0.0
    back_at: float = 0.0

    def failures(self) -> list[str]:
        return [answer.error for answer in self.answers if answer.error]

    def retried(self) -> int:
        return sum(answer.reconnects > 0 for answer in self.answers)

    def longest_gap_seconds(self) -> float:
        """Without an answer from the cluster as a whole: from one end of a request to the next."""
        ends = sorted(answer.ended_at for answer in self.answers)
        return max((later - end for end, later in itertools.pairwise(ends)), default=0.0)

    def recovery_seconds(self) -> float | None:
        """From the kill until as many requests end in a second as did before; None: not within the run."""
        ends = sorted(answer.ended_at for answer in self.answers)
        before = [end for end in ends if end < self.killed_at]
        if not before or not self.killed_at:
            return 0.0
        began = min(answer.ended_at - answer.seconds for answer in self.answers)
        usual = len(before) / (self.killed_at - began)
        start = self.killed_at
        while start < ends[-1]:
            window = max(_WINDOW_SECONDS, 4 / usual)
            share = sum(start <= end < start + window for end in ends) / window / usual
            if share >= _BACK_SHARE:
                return start - self.killed_at
            start += _WINDOW_SECONDS / 5
        return None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each case, with simulated engines")
    parser.add_argument("--real", action="store_true", help="with vLLM, and fewer requests")


def run(requests: int = REQUESTS, *, real: bool = False) -> str:
    """The table, of all cases."""
    groups = ((REAL_CASES, 2),) if real else ((CASES, 2), (SINGLE_CASES, 1))
    rows: list[Sequence[object]] = []
    for cases, workers in groups:
        with running(_manifest(real, workers)) as cluster:
            reference = _reference(cluster, REAL_REQUESTS) if real else expected_tokens
            count = REAL_REQUESTS if real else requests
            rows += [_row(case, survive(cluster, case, count, reference)) for case in cases]
    headings = (
        *("killed, or hangs", "requests", "answered correctly", "failed", "sent again by the client"),
        *("longest gap s", "throughput back after s", "process back after s"),
    )
    return markdown(headings, rows)


def _manifest(real: bool, workers: int) -> dict[str, Any]:
    """workers: of each role."""
    path = "llmserve.yaml" if real else "examples/sim.yaml"
    manifest: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    replicas = {"prefill": workers, "decode": workers} | ({} if real else {"apiserver": 2})
    manifest["spec"]["deployment"]["replicas"] = replicas
    if not real:
        manifest["spec"]["engine"]["sim"]["decode_step_seconds"] = 0.004
    return manifest


def survive(
    cluster: Cluster, case: Case, requests: int, reference: Callable[[int, list[int]], list[int]]
) -> Run:
    """One case: the load, the kill at a quarter of it, and the return of what was killed."""
    run, quarter = Run(), threading.Event()
    killer = threading.Thread(target=_kill_and_wait, args=(cluster, case, run, quarter))
    with _clients(cluster) as client, ThreadPoolExecutor(CLIENTS) as pool:
        killer.start()
        for answer in pool.map(lambda number: _ask(client, run, quarter, number, requests), range(requests)):
            wanted = reference(answer.number, answer.prompt)
            if not answer.error and answer.tokens != wanted:
                answer.error = f"wrong tokens: {answer.tokens[:5]} for {wanted[:5]}"
    quarter.set()
    killer.join(_BACK_SECONDS)
    return run


def _ask(client: Client, run: Run, quarter: threading.Event, number: int, requests: int) -> Answer:
    answer = client.ask(number, PROMPT_TOKENS, OUTPUT_TOKENS)
    run.answers.append(answer)
    if len(run.answers) >= requests // 4:
        quarter.set()
    return answer


@contextmanager
def _clients(cluster: Cluster) -> Iterator[Client]:
    state = cluster.state()
    with httpx.Client(timeout=120, limits=httpx.Limits(max_connections=None)) as http:
        yield Client(http, state["base_urls"], state["model"])


def _kill_and_wait(cluster: Cluster, case: Case, run: Run, quarter: threading.Event) -> None:
    """Kills at the quarter and notes when the process is ready again."""
    quarter.wait(_BACK_SECONDS)
    if not case.role:
        return
    names = [str(role["name"]) for role in cluster.state()["roles"] if case.role in ("*", role["name"])]
    old = {name: cluster.pid(name) for name in names}
    run.killed_at = time.monotonic()
    for pid in old.values():
        os.kill(engine_child(pid) if case.child else pid, signal.SIGSTOP if case.stop else signal.SIGKILL)
    deadline = run.killed_at + _BACK_SECONDS
    while time.monotonic() < deadline and not run.back_at:
        roles = {role["name"]: role for role in cluster.state()["roles"]}
        if all(roles[name]["pid"] != pid and roles[name]["stand"] == "ready" for name, pid in old.items()):
            run.back_at = time.monotonic()
        time.sleep(0.1)


def engine_child(pid: int) -> int:
    """Returns the process of the engine that worker `pid` has started."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return next(child for child in children if "Engine" in Path(f"/proc/{child}/comm").read_text())


def _reference(cluster: Cluster, requests: int) -> Callable[[int, list[int]], list[int]]:
    """What the undisturbed cluster says."""
    with _clients(cluster) as client, ThreadPoolExecutor(CLIENTS) as pool:
        answers = pool.map(lambda number: client.ask(number, PROMPT_TOKENS, OUTPUT_TOKENS), range(requests))
        said = {answer.number: answer.tokens for answer in answers}
    return lambda number, prompt: said[number]


def _row(case: Case, run: Run) -> Sequence[object]:
    failures = run.failures()
    for error in failures[:3]:
        print(f"  {case.name}: {error}", flush=True)
    recovery = run.recovery_seconds()
    back = f"{run.back_at - run.killed_at:.1f}" if run.back_at else "-"
    row = (
        *(case.name, len(run.answers), len(run.answers) - len(failures), len(failures), run.retried()),
        *(f"{run.longest_gap_seconds():.1f}", "-" if recovery is None else f"{recovery:.1f}", back),
    )
    print("  " + ", ".join(map(str, row)), flush=True)
    return row
