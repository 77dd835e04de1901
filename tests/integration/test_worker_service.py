"""gRPC `llmserve.v1.Worker` with the simulated engine, and the worker towards router and KV manager."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from llmserve.cli.profile import save
from llmserve.config.schema import EngineConfig, KvCacheConfig, SimSpec, Speculation, TransferConfig
from llmserve.core.adapters import NO_ADAPTERS, AdapterOrder, AdapterReport, LoraShape
from llmserve.core.errors import EngineDead, InvalidRequest, LLMServeError, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest, RequestId, WorkerId
from llmserve.core.request import EngineOutput, EngineRequest, FinishReason, SamplingLimits, WorkerRole
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.sim.link import open_handover_link
from llmserve.engines.sim.memory import TOKEN_BYTES
from llmserve.engines.sim.step import RealStepTimer
from llmserve.engines.spec import EngineSpec
from llmserve.rpc.adapters import decode_reports, encode_orders
from llmserve.rpc.client import open_channel
from llmserve.rpc.codec import decode_output, encode_params, encode_request
from llmserve.rpc.gen.llmserve.v1 import (
    kvmanager_pb2,
    kvmanager_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from llmserve.rpc.server import RpcServer
from llmserve.rpc.status import from_grpc
from llmserve.workers import service as worker_service
from llmserve.workers.worker import Worker, WorkerOptions

HAND_OVER = {"do_remote_decode": True}
PROMPT = list(range(100, 140))
SOON = 30.0
HANG_SECONDS = 3.0  # the least that a manifest may say

Generate = Callable[..., Awaitable[None]]


class Stream:
    """An apiserver's Session with a worker."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
        self.call = stub.Session()
        self.messages: list[worker_pb2.WorkerSessionResponse] = []
        self._deltas: list[EngineOutput] = []

    async def generate(
        self,
        name: str,
        prompt: Sequence[int] = PROMPT,
        max_tokens: int = 4,
        kv: Any = None,
        adapter: str = "",
    ) -> None:
        request = EngineRequest(
            RequestId(name),
            prompt,
            SamplingLimits(max_tokens),
            cache_salt="s",
            kv_transfer_params=kv,
            adapter=AdapterDigest(adapter),
        )
        await self.write(generate=encode_request(request).generate)

    async def abort(self, *names: str) -> None:
        await self.write(abort=worker_pb2.AbortRequest(request_ids=names))

    async def write(self, **message: Any) -> None:
        messages = [worker_pb2.WorkerSessionRequest(**message)]
        await self.call.write(worker_pb2.WorkerSessionRequests(messages=messages))

    async def read(self) -> bool:
        """One message; False at the end of the stream."""
        async with asyncio.timeout(SOON):
            message = await self.call.read()
        if not isinstance(message, worker_pb2.WorkerSessionResponse):
            return False
        self.messages.append(message)
        self._deltas.extend(decode_output(delta) for delta in message.deltas)
        return True

    def of(self, name: str) -> list[EngineOutput]:
        return [delta for delta in self._deltas if delta.request_id == name]

    def tokens(self, name: str) -> list[int]:
        return [token for delta in self.of(name) for token in delta.token_ids]

    async def first(self, name: str) -> EngineOutput:
        while not self.of(name):
            assert await self.read(), "the stream ended"
        return self.of(name)[0]

    async def last(self, name: str) -> EngineOutput:
        while not self.of(name) or self.of(name)[-1].finish_reason is None:
            assert await self.read(), "the stream ended"
        return self.of(name)[-1]


class Cluster:
    """Starts workers and closes everything."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.registry = CollectorRegistry()

    async def worker(
        self,
        *,
        step_seconds: float = 0.001,
        drain_seconds: float = 0.1,
        lora: LoraShape = NO_ADAPTERS,
        speculation: Speculation | None = None,
        sim: Mapping[str, float] | None = None,
        **options: Any,
    ) -> tuple[Worker, grpc.aio.Channel]:
        """sim: of `engine.sim`."""
        spec = replace(self._spec(step_seconds, sim or {}), lora=lora, speculation=speculation)
        engine = MortalEngine(spec)
        worker = Worker(
            spec,
            WorkerOptions("127.0.0.1:0", drain_seconds=drain_seconds, **options),
            engine,
            self.registry,
        )
        self._stack.push_async_callback(worker.aclose)
        await worker.start()
        channel = await self._stack.enter_async_context(open_channel(worker.address))
        return worker, channel

    @staticmethod
    def _spec(step_seconds: float, sim: Mapping[str, float]) -> EngineSpec:
        return EngineSpec(
            worker_id=WorkerId("decode-0"),
            epoch=7,
            role=WorkerRole.DECODE,
            model_dir=None,
            model_name="sim",
            model_identity="rev",
            engine=EngineConfig(
                kind="sim",
                hang_seconds=HANG_SECONDS,
                sim=SimSpec(decode_step_seconds=step_seconds).model_copy(update=sim),
            ),
            kv_cache=KvCacheConfig(),
            transfer=TransferConfig(),
        )

    async def serve(self, register: Any, servicer: Any, name: str, port: int = 0) -> tuple[RpcServer, int]:
        server = RpcServer(f"127.0.0.1:{port}")
        server.add(register, servicer, name)
        self._stack.push_async_callback(server.aclose)
        return server, await server.start()


class MortalEngine(SimEngine):
    """Dies, or hangs, when told to. profiled: the files of a profile, which ends when `recorded` is set."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec, open_handover_link, RealStepTimer())
        self.hangs = False
        self.profiled: tuple[Path, ...] = ()
        self.recording, self.recorded, self.cancelled = (asyncio.Event() for _ in range(3))

    async def profile(self, seconds: float) -> Sequence[Path]:
        if not self.profiled:
            return await super().profile(seconds)
        self.recording.set()
        try:
            await self.recorded.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self.profiled

    async def ping(self) -> None:
        while self.hangs:  # noqa: ASYNC110 - a test sets it
            await asyncio.sleep(0.01)

    async def next_outputs(self) -> Sequence[EngineOutput]:
        outputs = await super().next_outputs()
        await self.ping()
        return outputs

    def die(self) -> None:
        assert self._tasks is not None
        self._tasks.spawn("accident", _fail(), fatal=True)


async def _fail() -> None:
    raise RuntimeError("the engine's process was killed")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


async def load_of(channel: grpc.aio.Channel) -> Any:
    stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
    return (await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=SOON)).load


async def is_empty(channel: grpc.aio.Channel) -> None:
    """Waits until the engine holds nothing."""
    async with asyncio.timeout(SOON):
        while _holds(await load_of(channel)):  # noqa: ASYNC110 - a remote state
            await asyncio.sleep(0.01)


def _holds(load: Any) -> bool:
    return bool(load.used_blocks or load.running_requests or load.leased_blocks or load.orphan_blocks)


# -- streams


async def test_a_stream_carries_tokens_to_the_end(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    stream = Stream(channel)
    await stream.generate("a", max_tokens=5)
    last = await stream.last("a")
    assert last.finish_reason is FinishReason.LENGTH
    assert len(stream.tokens("a")) == 5
    assert stream.of("a")[0].prefill_stats is not None
    await is_empty(channel)


async def test_deltas_of_one_step_travel_in_one_message(cluster: Cluster) -> None:
    _, channel = await cluster.worker(step_seconds=0.03)  # the last one comes before the first one ends
    stream = Stream(channel)
    names = [f"r{number}" for number in range(16)]
    for name in names:
        await stream.generate(name, max_tokens=30)
    for name in names:
        await stream.last(name)
    assert sum(len(stream.tokens(name)) for name in names) == 16 * 30
    assert len(stream.messages) < 100, "480 tokens of 16 requests"
    assert max(len(message.deltas) for message in stream.messages) == 16
    assert all(
        len({delta.request_id for delta in message.deltas}) == len(message.deltas)
        for message in stream.messages
    )


async def test_two_streams_get_their_own(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    one, two = Stream(channel), Stream(channel)
    await one.generate("a")
    await two.generate("b")
    await one.last("a")
    await two.last("b")
    assert not one.of("b")
    assert not two.of("a")


async def test_a_stream_that_is_closed_by_its_apiserver_ends_with_its_last_request(
    cluster: Cluster,
) -> None:
    _, channel = await cluster.worker()
    stream = Stream(channel)
    await stream.generate("a", max_tokens=20)
    await stream.call.done_writing()
    assert (await stream.last("a")).finish_reason is FinishReason.LENGTH
    assert not await stream.read()


async def test_a_broken_stream_aborts_its_requests_and_no_others(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    broken, other = Stream(channel), Stream(channel)
    for number in range(5):
        await broken.generate(f"b{number}", max_tokens=4000)
    await other.generate("a", max_tokens=300)
    await broken.first("b4")
    broken.call.cancel()
    assert len((await other.last("a")).token_ids) >= 1
    assert len(other.tokens("a")) == 300
    await is_empty(channel)


async def test_a_broken_connection_is_a_broken_stream(cluster: Cluster) -> None:
    worker, channel = await cluster.worker()
    second = open_channel(worker_address(worker))
    stream = Stream(second)
    await stream.generate("a", max_tokens=4000)
    await stream.first("a")
    await second.close(None)
    await is_empty(channel)


async def test_a_stream_that_is_read_no_more_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error that nobody foresaw. Else its apiserver would go on sending requests that nobody reads."""
    _, channel = await cluster.worker()
    stream, other = Stream(channel), Stream(channel)
    await stream.generate("a", max_tokens=4000)
    await stream.first("a")
    with monkeypatch.context() as patched:
        patched.setattr(worker_service, "decode_request", Mock(side_effect=RuntimeError("a bug")))
        await stream.generate("b")
        while await stream.read():
            pass
    await is_empty(channel)
    await other.generate("c")
    assert (await other.last("c")).finish_reason is FinishReason.LENGTH


def worker_address(worker: Worker) -> str:
    assert worker._status is not None
    return worker._status.info.address


async def test_abort_ends_a_request_without_a_word(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    stream = Stream(channel)
    await stream.generate("a", max_tokens=4000)
    await stream.first("a")
    await stream.abort("a", "nobody")
    await is_empty(channel)
    await stream.generate("b")
    await stream.last("b")
    assert all(delta.finish_reason is None for delta in stream.of("a"))


async def test_nobody_aborts_the_request_of_another(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    one, two = Stream(channel), Stream(channel)
    await one.generate("a", max_tokens=100)
    await one.first("a")
    await two.abort("a")
    assert (await one.last("a")).finish_reason is FinishReason.LENGTH


# -- errors are deltas


async def test_an_id_in_use_is_refused(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    one, two = Stream(channel), Stream(channel)
    await one.generate("a", max_tokens=200)
    await one.first("a")
    await two.generate("a")
    refused = await two.last("a")
    assert refused.finish_reason is FinishReason.ERROR
    assert refused.error == "InvalidRequest: request id a is in use"
    assert (await one.last("a")).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"prompt_token_ids": [1]}, "InvalidRequest: limits.max_tokens"),
        ({"limits": {"max_tokens": 1}}, "InvalidRequest: prompt_token_ids is empty"),
        ({"prompt_token_ids": [1], "limits": {"max_tokens": 100_000}}, "InvalidRequest: 1 prompt tokens and"),
        (
            {"prompt_token_ids": [1], "limits": {"max_tokens": 1}, "kv_transfer_params": b"{"},
            "InvalidRequest: kv_transfer_params is not JSON",
        ),
        (
            {
                "prompt_token_ids": [1],
                "limits": {"max_tokens": 1},
                "kv_transfer_params": b'{"do_remote_prefill": true}',
            },
            "InvalidRequest: kv_transfer_params: Object missing required field `worker_id`",
        ),
    ],
)
async def test_what_the_engine_refuses_ends_in_an_error_delta(
    cluster: Cluster, message: dict[str, Any], error: str
) -> None:
    _, channel = await cluster.worker()
    stream = Stream(channel)
    await stream.write(generate=worker_pb2.GenerateRequest(request_id="bad", **message))
    refused = await stream.last("bad")
    assert refused.finish_reason is FinishReason.ERROR
    assert refused.error.startswith(error)
    await stream.generate("bad")  # the stream and the id are as good as before
    while stream.of("bad")[-1].finish_reason is not FinishReason.LENGTH:
        assert await stream.read()


async def test_when_the_engine_dies_every_request_is_told_and_the_worker_ends(cluster: Cluster) -> None:
    worker, channel = await cluster.worker()
    stream = Stream(channel)
    await stream.generate("a", max_tokens=4000)
    await stream.first("a")
    assert isinstance(worker._engine, MortalEngine)
    worker._engine.die()
    last = await stream.last("a")
    assert last.error.startswith("EngineDead: ")
    assert not await stream.read(), "the stream ends"
    with pytest.raises(EngineDead):
        await worker.wait()


async def test_when_the_engine_hangs_the_router_hears_and_every_request_is_told(cluster: Cluster) -> None:
    router = FakeRouter()
    _, port = await cluster.serve(ROUTER[0], router, ROUTER[1])
    worker, channel = await cluster.worker(routers=(f"127.0.0.1:{port}",))
    stream = Stream(channel)
    await stream.generate("a", max_tokens=4000)
    await stream.first("a")
    assert isinstance(worker._engine, MortalEngine)
    worker._engine.hangs = True
    await router.until(lambda: router.last_load is not None and router.last_load.stalled)
    samples = {
        family.name: family.samples[0].value for family in cluster.registry.collect() if family.samples
    }
    assert samples["worker_engine_stalled"] == 1
    assert samples["worker_engine_silent_seconds"] >= 1
    last = await stream.last("a")
    assert last.error.startswith("EngineDead: the engine hangs: it has not answered for ")
    with pytest.raises(EngineDead, match="the engine hangs"):
        await worker.wait()
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING


# -- leases


async def granted(stream: Stream, name: str) -> dict[str, Any]:
    await stream.generate(name, max_tokens=1, kv=HAND_OVER)
    ticket = (await stream.last(name)).kv_transfer_params
    assert ticket is not None
    return dict(ticket)


async def test_release_lease_is_idempotent(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
    ticket = await granted(Stream(channel), "a")
    assert (await load_of(channel)).leased_blocks == 3
    request = worker_pb2.ReleaseLeaseRequest(kv_transfer_params=encode_params(ticket))
    assert (await stub.ReleaseLease(request, timeout=SOON)).released
    assert not (await stub.ReleaseLease(request, timeout=SOON)).released
    await is_empty(channel)


@pytest.mark.parametrize("params", [b"", b"[]", b'{"do_remote_prefill": true}'])
async def test_releasing_what_is_no_ticket_is_the_callers_mistake(cluster: Cluster, params: bytes) -> None:
    _, channel = await cluster.worker()
    stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ReleaseLease(worker_pb2.ReleaseLeaseRequest(kv_transfer_params=params), timeout=SOON)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_broken_stream_gives_its_tickets_back(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    broken, other = Stream(channel), Stream(channel)
    await granted(broken, "a")
    await granted(other, "b")
    assert (await load_of(channel)).leased_blocks == 6
    broken.call.cancel()
    async with asyncio.timeout(SOON):
        while (await load_of(channel)).leased_blocks != 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_ticket_fetched_by_a_second_worker(cluster: Cluster) -> None:
    _, prefill = await cluster.worker()
    cluster.registry = CollectorRegistry()
    _, decode = await cluster.worker()
    one, two = Stream(prefill), Stream(decode)
    ticket = await granted(one, "a")
    await two.generate("a", kv=ticket)
    await two.last("a")
    assert two.tokens("a")[:1] == one.tokens("a")
    stats = two.of("a")[0].prefill_stats
    assert stats is not None
    assert stats.external_cached_tokens == len(PROMPT)
    await is_empty(prefill)
    await is_empty(decode)
    assert cluster.registry.get_sample_value("kv_transfer_bytes_total") == 3 * 16 * TOKEN_BYTES  # blocks


# -- life


async def test_a_stopping_worker_finishes_what_runs_and_takes_no_more(cluster: Cluster) -> None:
    worker, channel = await cluster.worker(drain_seconds=SOON)
    stream = Stream(channel)
    await stream.generate("a", max_tokens=200)
    await stream.first("a")
    stopping = asyncio.ensure_future(worker.aclose())
    await not_serving(channel)
    await stream.generate("b")
    assert (await stream.last("b")).error == "WorkerDraining: the worker is stopping"
    assert (await stream.last("a")).finish_reason is FinishReason.LENGTH
    await stopping


async def not_serving(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="llmserve.v1.Worker")
    async with asyncio.timeout(SOON):
        while (await stub.Check(request)).status != health_pb2.HealthCheckResponse.NOT_SERVING:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_what_does_not_end_in_time_is_given_up(cluster: Cluster) -> None:
    worker, channel = await cluster.worker(drain_seconds=0.05)
    stream = Stream(channel)
    await stream.generate("a", max_tokens=4000)
    await stream.first("a")
    await worker.aclose()
    assert (await stream.last("a")).error == "WorkerDraining: the worker is stopping"


# -- the router


class FakeRouter(router_pb2_grpc.RouterServicer):
    """reports: of the worker's adapters. order: changes what it is to hold, which is `obeyed` from the next
    heartbeat but one."""

    def __init__(self, heartbeat_seconds: float = 0.02) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._orders: tuple[AdapterOrder, ...] = ()
        self._orders_version = 0
        self.reports: dict[int, AdapterReport] = {}
        self.report_messages = 0
        self.obeyed = True
        self.log: list[str] = []
        self.known: set[str] = set()
        self.changed = asyncio.Event()
        self.last_load: Any = None

    def note(self, word: str) -> None:
        self.log.append(word)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.known.add(request.worker.worker_id)
        self.worker = request.worker
        self.note("register")
        return router_pb2.RegisterResponse(heartbeat_seconds=self._heartbeat_seconds, expiry_seconds=1.0)

    def order(self, *orders: AdapterOrder) -> None:
        self._orders, self._orders_version = orders, self._orders_version + 1
        self.obeyed = False

    async def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.worker_id not in self.known:
            raise NotFound(f"no worker {request.worker_id}")
        self.last_load = request.load
        if request.HasField("adapters"):
            self.report_messages += 1
            self.reports = decode_reports(request.adapters).applied_to(self.reports)
        self.obeyed = request.adapters_version == self._orders_version
        self.note("heartbeat")
        return router_pb2.HeartbeatResponse(
            adapters_version=self._orders_version,
            adapters=None if self.obeyed else encode_orders(self._orders),
        )

    async def Deregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.known.discard(request.worker_id)
        self.note("deregister")
        return router_pb2.DeregisterResponse()


ROUTER = (router_pb2_grpc.add_RouterServicer_to_server, "llmserve.v1.Router")


async def test_a_worker_registers_beats_and_leaves(cluster: Cluster) -> None:
    router = FakeRouter()
    _, port = await cluster.serve(ROUTER[0], router, ROUTER[1])
    worker, _ = await cluster.worker(routers=(f"127.0.0.1:{port}",))
    await router.until(lambda: router.log.count("heartbeat") >= 2)
    info = router.worker
    assert (info.worker_id, info.epoch, info.model) == ("decode-0", 7, "sim")
    assert info.address == worker_address(worker)
    assert (info.kv_shape.model_revision, info.kv_shape.block_size_tokens) == ("rev", 16)
    assert info.transports[-1] == "tcp"
    assert len(info.handover_endpoints) == 1
    await worker.aclose()
    assert router.log[-1] == "deregister"


async def test_a_router_that_forgot_is_told_again(cluster: Cluster) -> None:
    router = FakeRouter()
    _, port = await cluster.serve(ROUTER[0], router, ROUTER[1])
    await cluster.worker(routers=(f"127.0.0.1:{port}",))
    await router.until(lambda: "heartbeat" in router.log)
    router.known.clear()
    await router.until(lambda: router.log.count("register") == 2)
    await router.until(lambda: router.log[-1] == "heartbeat")


async def test_a_router_that_comes_later_and_returns_is_found(cluster: Cluster) -> None:
    first = FakeRouter()
    server, port = await cluster.serve(ROUTER[0], first, ROUTER[1])
    await server.aclose()
    await cluster.worker(routers=(f"127.0.0.1:{port}",))
    late = FakeRouter()
    await cluster.serve(ROUTER[0], late, ROUTER[1], port)
    await late.until(lambda: "heartbeat" in late.log)


# -- the KV manager


class FakeManager(kvmanager_pb2_grpc.KVManagerServicer):
    """Applies reports as kvmanager.proto says; asks for a resync when told to."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.resident: set[bytes] = set()
        self.open_leases: set[str] = set()
        self.resync = False
        self.changed = asyncio.Event()

    async def Report(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for report in requests:
            self.apply(report)
            resync, self.resync = self.resync, False
            yield kvmanager_pb2.KvReportAck(sequence=report.sequence, resync=resync)

    def apply(self, report: Any) -> None:
        self.reports.append(report)
        if report.snapshot or report.cleared:
            self.resident.clear()
        if report.snapshot:
            self.open_leases.clear()
        self.resident.difference_update(report.removed)
        self.resident.update(report.stored)
        for lease in report.leases:
            if lease.state == kvmanager_pb2.LEASE_STATE_GRANTED:
                self.open_leases.add(lease.lease_id)
            else:
                self.open_leases.discard(lease.lease_id)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


MANAGER = (kvmanager_pb2_grpc.add_KVManagerServicer_to_server, "llmserve.v1.KVManager")


async def test_the_manager_learns_blocks_and_leases(cluster: Cluster) -> None:
    manager = FakeManager()
    _, port = await cluster.serve(MANAGER[0], manager, MANAGER[1])
    _, channel = await cluster.worker(kvmanagers=(f"127.0.0.1:{port}",))
    await manager.until(lambda: bool(manager.reports))
    assert manager.reports[0].snapshot
    stream = Stream(channel)
    ticket = await granted(stream, "a")
    await manager.until(lambda: len(manager.resident) == 2 and manager.open_leases == {ticket["lease_id"]})
    stream.call.cancel()
    await manager.until(lambda: not manager.open_leases)
    assert [report.sequence for report in manager.reports] == list(range(1, len(manager.reports) + 1))
    assert {report.epoch for report in manager.reports} == {7}


async def test_a_resync_brings_a_snapshot(cluster: Cluster) -> None:
    manager = FakeManager()
    _, port = await cluster.serve(MANAGER[0], manager, MANAGER[1])
    _, channel = await cluster.worker(kvmanagers=(f"127.0.0.1:{port}",))
    stream = Stream(channel)
    await granted(stream, "a")
    await manager.until(lambda: len(manager.resident) == 2)
    manager.resync = True
    seen = len(manager.reports)
    await stream.generate("b", prompt=[5] * 16, max_tokens=1)
    await manager.until(lambda: len(manager.reports) > seen + 1)
    assert manager.reports[-1].snapshot
    assert len(manager.resident) == 3
    assert len(manager.open_leases) == 1


async def test_a_manager_that_returns_gets_a_snapshot(cluster: Cluster) -> None:
    first, second = FakeManager(), FakeManager()
    server, port = await cluster.serve(MANAGER[0], first, MANAGER[1])
    _, channel = await cluster.worker(kvmanagers=(f"127.0.0.1:{port}",))
    await granted(Stream(channel), "a")
    await first.until(lambda: len(first.resident) == 2)
    await server.aclose()
    await cluster.serve(MANAGER[0], second, MANAGER[1], port)
    await second.until(lambda: len(second.resident) == 2 and len(second.open_leases) == 1)
    assert second.reports[0].snapshot
    assert second.reports[0].sequence > first.reports[-1].sequence


async def test_each_manager_learns_all_and_one_that_is_away_holds_up_none(cluster: Cluster) -> None:
    one, other = FakeManager(), FakeManager()
    server, first = await cluster.serve(MANAGER[0], one, MANAGER[1])
    _, second = await cluster.serve(MANAGER[0], other, MANAGER[1])
    _, channel = await cluster.worker(kvmanagers=(f"127.0.0.1:{first}", f"127.0.0.1:{second}"))
    stream = Stream(channel)
    ticket = await granted(stream, "a")
    for manager in (one, other):
        await manager.until(lambda m=manager: m.open_leases == {ticket["lease_id"]})  # type: ignore[misc]
    await server.aclose()
    stream.call.cancel()
    await other.until(lambda: not other.open_leases)
    assert len(other.resident) == 2


# -- the process

MANIFEST = """
apiVersion: llmserve/v1
kind: LLMServe
models: {primary: {source: "hub:sim/sim"}}
engine: {kind: sim, sim: {decode_step_seconds: 0.001}}
"""


async def test_the_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    manifest = tmp_path / "llmserve.yaml"
    manifest.write_text(MANIFEST)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmserve.workers", "--role", "decode", "--name", "decode-0"),
        *("--model", "sim"),
        *("--manifest", str(manifest), "--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ, LLMSERVE_LOG_LEVEL="warning"),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            lines = [(await process.stdout.readline()).decode() for _ in range(2)]
            assert lines == ["LLMSERVE_PROGRESS starting the sim engine\n", "LLMSERVE_READY decode-0\n"]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def profile_of(channel: grpc.aio.Channel, seconds: float) -> Any:
    stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]  # generated
    return stub.Profile(worker_pb2.ProfileRequest(seconds=seconds), timeout=SOON)


async def refusal_of(channel: grpc.aio.Channel, seconds: float) -> LLMServeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await profile_of(channel, seconds).read()
    return from_grpc(caught.value)


async def test_a_profile_brings_all_files_one_at_a_time_while_the_worker_serves(
    cluster: Cluster, tmp_path: Path
) -> None:
    worker, channel = await cluster.worker()
    files, here = (tmp_path / "rank0.json.gz", tmp_path / "rank1.json.gz"), tmp_path / "here"
    here.mkdir()
    files[0].write_bytes(bytes(range(256)) * 5000)
    files[1].write_bytes(b"short")
    content = [file.read_bytes() for file in files]
    engine = worker._engine
    assert isinstance(engine, MortalEngine)
    engine.profiled = files
    call = profile_of(channel, 2.5)
    async with asyncio.timeout(SOON):
        await engine.recording.wait()
    refusal = await refusal_of(channel, 1.0)
    assert isinstance(refusal, Unavailable)
    assert refusal.message == "a profile of this worker is being recorded: try again when it has ended"
    stream = Stream(channel)
    await stream.generate("r")
    assert len(stream.tokens("r")) == 0
    assert (await stream.last("r")).finish_reason is FinishReason.LENGTH, "it serves meanwhile"
    engine.recorded.set()
    saved = await save(call, here)
    assert [(path.name, path.read_bytes()) for path in saved] == [
        ("rank0.json.gz", content[0]),
        ("rank1.json.gz", content[1]),
    ]
    assert not any(file.exists() for file in files), "nothing is left at the worker"
    for file, data in zip(files, content, strict=True):
        file.write_bytes(data)
    assert len(await save(profile_of(channel, 1.0), here)) == 2, "then the next may"


async def test_a_profile_that_cannot_be_is_refused(cluster: Cluster) -> None:
    _, channel = await cluster.worker()
    refusal = await refusal_of(channel, 1.0)
    assert isinstance(refusal, InvalidRequest)
    assert refusal.message.startswith("the simulated engine computes nothing that a profiler")
    assert (await refusal_of(channel, 0)).message == "a profile takes up to 600 s, got 0"
    assert (await refusal_of(channel, 601)).message == "a profile takes up to 600 s, got 601"


async def test_a_caller_that_goes_away_ends_the_profile(cluster: Cluster, tmp_path: Path) -> None:
    worker, channel = await cluster.worker()
    engine = worker._engine
    assert isinstance(engine, MortalEngine)
    engine.profiled = (tmp_path / "trace",)
    call = profile_of(channel, 1.0)
    async with asyncio.timeout(SOON):
        await engine.recording.wait()
        call.cancel()
        await engine.cancelled.wait()
    engine.profiled = ()
    assert isinstance(await refusal_of(channel, 1.0), InvalidRequest), "it is not recording any more"
