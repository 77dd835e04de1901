"""The part of a worker that is independent of its engine: session, outbox and codec over gRPC.

`python -m bench.gateway.instant_worker MANIFEST` serves a worker whose engine has every token at hand, on a
free port, and prints its number. Started by `worker_costs`, which plays the apiserver.
"""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import uvloop
from prometheus_client import CollectorRegistry

from bench.gateway.floor import MARK
from bench.server_process import stop
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.request import (
    EngineLoad,
    EngineOutput,
    EngineRequest,
    FinishReason,
    HandoverReport,
    KvEvents,
    KvPeer,
    PrefillStats,
    SamplingLimits,
    WorkerRole,
)
from llmserve.engines.base import EngineInfo
from llmserve.rpc.client import open_channel
from llmserve.rpc.codec import encode_request
from llmserve.rpc.gen.llmserve.v1 import worker_pb2, worker_pb2_grpc
from llmserve.rpc.outbox import Outbox
from llmserve.workers.build import WorkerModel, engine_spec
from llmserve.workers.worker import Worker, WorkerOptions

# Of the usual case of `bench gateway`: the leg of prefill has one token, that of decode the others.
LEG_TOKENS = {"prefill": 1, "decode": 15}
_PROMPT = list(range(1000, 1040))
_PARAMS_BYTES = 150


class InstantEngine:
    """The Engine contract without an engine: each request that runs has its next token at once."""

    def __init__(self) -> None:
        self._missing: dict[RequestId, int] = {}
        self._fresh: set[RequestId] = set()
        self._added = asyncio.Event()

    async def start(self) -> EngineInfo:
        return EngineInfo("none", "none", "none", 16, 1, 1 << 16, 8192, 512, (), ())

    async def add(self, request: EngineRequest) -> None:
        self._missing[request.request_id] = request.limits.max_tokens
        self._fresh.add(request.request_id)
        self._added.set()

    async def load_adapter(self, digest: AdapterDigest, path: Path) -> None: ...

    async def unload_adapter(self, digest: AdapterDigest, *, forget_blocks: bool = False) -> None: ...

    async def abort(self, request_ids: Sequence[RequestId]) -> None:
        for request_id in request_ids:
            self._missing.pop(request_id, None)

    async def next_outputs(self) -> Sequence[EngineOutput]:
        while not self._missing:
            self._added.clear()
            await self._added.wait()
        await asyncio.sleep(0)
        return [self._next(request_id) for request_id in list(self._missing)]

    def _next(self, request_id: RequestId) -> EngineOutput:
        self._missing[request_id] -= 1
        is_last = self._missing[request_id] == 0
        if is_last:
            del self._missing[request_id]
        is_first = request_id in self._fresh
        self._fresh.discard(request_id)
        return EngineOutput(
            request_id,
            (1234,),
            FinishReason.LENGTH if is_last else None,
            prefill_stats=PrefillStats(len(_PROMPT)) if is_first else None,
            handover=HandoverReport("shm", 1000, 0.001) if is_first else None,
        )

    async def next_kv_events(self) -> KvEvents:
        never: asyncio.Future[KvEvents] = asyncio.get_running_loop().create_future()
        return await never

    async def load(self) -> EngineLoad:
        return EngineLoad(running_requests=len(self._missing))

    async def ping(self) -> None:
        await asyncio.sleep(0)

    def processes(self) -> Collection[int]:
        return ()

    async def set_peers(self, peers: Sequence[KvPeer]) -> None: ...

    async def profile(self, seconds: float) -> Sequence[Path]:
        raise InvalidRequest("this engine computes nothing")

    async def aclose(self) -> None: ...


@contextmanager
def _serving(manifest: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Yields the worker's address and process. Errors: RuntimeError when it does not start."""
    command = [sys.executable, "-m", "bench.gateway.instant_worker", str(manifest)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next((line.removeprefix(MARK) for line in process.stdout if line.startswith(MARK)), "")
        if not address:
            raise RuntimeError(f"the worker did not start: exit code {process.wait()}")
        yield address.strip(), psutil.Process(process.pid)
    finally:
        stop(process)


def worker_costs(manifest: Path, role: str, clients: int, seconds: float) -> float:
    """Returns the worker's CPU ms for each leg of this role."""
    with _serving(manifest) as (address, process):
        return float(uvloop.run(_leg_ms(address, process, LEG_TOKENS[role], clients, seconds)))


async def _leg_ms(address: str, process: psutil.Process, tokens: int, clients: int, seconds: float) -> float:
    outbox: Outbox[worker_pb2.WorkerSessionRequest] = Outbox()
    async with open_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
        legs = _Legs(outbox, tokens)
        reader = asyncio.create_task(legs.read(stub.Session(_batches(outbox))))
        await legs.drive(clients, 0.2)  # what is done once
        before, done = _cpu_seconds(process), legs.done
        await legs.drive(clients, seconds)
        cost = 1000 * (_cpu_seconds(process) - before) / (legs.done - done)
        outbox.close()
        await reader
    return cost


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _batches(
    outbox: Outbox[worker_pb2.WorkerSessionRequest],
) -> AsyncIterator[worker_pb2.WorkerSessionRequests]:
    while messages := await outbox.take():
        yield worker_pb2.WorkerSessionRequests(messages=messages)


class _Legs:
    """Legs of so many tokens, in closed loops."""

    def __init__(self, outbox: Outbox[worker_pb2.WorkerSessionRequest], tokens: int) -> None:
        self._outbox, self._limits, self._numbers = outbox, SamplingLimits(tokens), itertools.count()
        self._ends: dict[str, asyncio.Future[None]] = {}
        self.done = 0

    async def drive(self, clients: int, seconds: float) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self._client(until) for _ in range(clients)))

    async def _client(self, until: float) -> None:
        while time.perf_counter() < until:
            name = RequestId(f"chatcmpl-bench-{next(self._numbers)}")
            request = EngineRequest(name, _PROMPT, self._limits, b"x" * _PARAMS_BYTES, cache_salt="0" * 32)
            end = self._ends[name] = asyncio.get_running_loop().create_future()
            self._outbox.put(encode_request(request))
            await end
            self.done += 1

    async def read(self, responses: AsyncIterator[worker_pb2.WorkerSessionResponse]) -> None:
        async for response in responses:
            for delta in response.deltas:
                if delta.finish_reason:
                    self._ends.pop(delta.request_id).set_result(None)


async def _serve(manifest: Path) -> None:
    loaded = load_manifest(manifest)
    spec = engine_spec(loaded, "decode-0", WorkerRole.DECODE, 1, WorkerModel(None, "none"), "127.0.0.1:0")
    worker = Worker(spec, WorkerOptions(listen="127.0.0.1:0"), InstantEngine(), CollectorRegistry())
    await worker.start()
    print(f"{MARK}{worker.address}", flush=True)
    await worker.wait()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
