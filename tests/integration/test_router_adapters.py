"""Adapters over the router's real gRPC, with a worker that only talks to it, and routers that start again."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from llmserve.core.adapters import AdapterOrder, AdapterReport, AdapterReports, AdapterTier, LoraShape
from llmserve.core.clock import LeaseClock
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.registration import AdapterWish
from llmserve.router.leader.file_state import FileState
from llmserve.router.role import RouterRole
from llmserve.router.settings import DeclaredAdapters, RouterSettings
from llmserve.rpc.adapters import decode_names, decode_orders, encode_lora, encode_reports
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc

WAIT_SECONDS = 30.0
DIGEST = AdapterDigest("ab" * 32)


class Worker:
    """Fetches what it is ordered to hold, unless it is told not to. sent: the orders of each answer that had
    some."""

    def __init__(self, stub: router_pb2_grpc.RouterStub) -> None:
        self.stub, self.fetches = stub, True
        self.version = 0
        self.orders: tuple[AdapterOrder, ...] = ()
        self.sent: list[tuple[AdapterOrder, ...]] = []

    async def register(self) -> None:
        info = common_pb2.WorkerInfo(
            worker_id="aggregated-0",
            role=common_pb2.WORKER_ROLE_AGGREGATED,
            address="127.0.0.1:1",
            epoch=1,
            model="m",
            kv_shape=common_pb2.KvShape(block_size_tokens=16),
            max_concurrency=4,
            lora=encode_lora(LoraShape(4, 16)),
        )
        await self.stub.Register(router_pb2.RegisterRequest(worker=info), timeout=WAIT_SECONDS)
        self.version = 0

    async def heartbeat(self) -> None:
        held = self.orders if self.fetches else ()
        reports = [AdapterReport(one.number, DIGEST, 8, 100, AdapterTier.DISK) for one in held]
        request = router_pb2.HeartbeatRequest(
            worker_id="aggregated-0",
            epoch=1,
            adapters_version=self.version,
            adapters=encode_reports(AdapterReports(tuple(reports))),
        )
        answer = await self.stub.Heartbeat(request, timeout=WAIT_SECONDS)
        if answer.adapters_version != self.version:
            self.version, self.orders = answer.adapters_version, decode_orders(answer.adapters)
            self.sent.append(self.orders)
        else:
            assert not answer.HasField("adapters")

    async def run(self) -> None:
        while True:
            await self.heartbeat()
            await asyncio.sleep(0.02)


class Cluster:
    """A router, and a worker that sends heartbeats all the time."""

    def __init__(self, router: RouterRole, stub: router_pb2_grpc.RouterStub) -> None:
        self.router, self.stub, self.worker = router, stub, Worker(stub)

    async def call(self, rpc: str, /, **fields: Any) -> Any:
        """Errors: LLMServeError."""
        request = getattr(router_pb2, f"{rpc}Request")(**fields)
        try:
            return await getattr(self.stub, rpc)(request, timeout=WAIT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error

    async def load(self, name: str = "sql", source: str = "dir:/adapters/sql") -> router_pb2.AdapterStatus:
        answer: router_pb2.LoadAdapterResponse = await self.call("LoadAdapter", name=name, source=source)
        return answer.adapter


Start = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a router that knows what an earlier one saved. declared: the adapters of its manifest."""
    async with AsyncExitStack() as stack:

        async def run(*declared: AdapterWish) -> Cluster:
            settings = RouterSettings(
                adapters=(DeclaredAdapters("m", declared),), allowed_sources=("dir:/adapters",)
            )
            router = RouterRole(settings, listen="127.0.0.1:0", state=FileState(LeaseClock(), tmp_path))
            stack.push_async_callback(router.aclose)
            await router.start()
            channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{router.port}"))
            cluster = Cluster(router, router_pb2_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]
            await cluster.worker.register()
            task = asyncio.ensure_future(cluster.worker.run())
            stack.callback(task.cancel)
            return cluster

        yield run


class Apiserver:
    """The session of an apiserver. names: of each state that had some. placed: of each answer. hears: whether
    it answers the router's questions now."""

    def __init__(self, stub: router_pb2_grpc.RouterStub) -> None:
        self._call = stub.Session()
        self.hears = True
        self.names: asyncio.Queue[list[str]] = asyncio.Queue()
        self.placed: asyncio.Queue[str] = asyncio.Queue()

    async def write(self, **message: Any) -> None:
        request = router_pb2.RouterSessionRequest(**message)
        await self._call.write(router_pb2.RouterSessionRequests(messages=[request]))

    async def run(self) -> None:
        await self.write(hello=router_pb2.Hello(apiserver_id="api"))
        while True:
            for message in (await self._call.read()).messages:
                match message.WhichOneof("message"):
                    case "state" if message.state.HasField("adapters"):
                        self.names.put_nowait([one.name for one in decode_names(message.state.adapters)])
                    case "placed":
                        self.placed.put_nowait(message.placed.request_id)
                    case "question" if self.hears:
                        await self.write(answer=router_pb2.Answer(number=message.question.number))


@asynccontextmanager
async def session_of(cluster: Cluster) -> AsyncIterator[Apiserver]:
    apiserver = Apiserver(cluster.stub)
    task = asyncio.ensure_future(apiserver.run())
    try:
        async with asyncio.timeout(2 * WAIT_SECONDS):
            assert await apiserver.names.get() == []
            yield apiserver
    finally:
        task.cancel()
        apiserver._call.cancel()


async def test_an_adapter_is_loaded_used_and_unloaded(start: Start) -> None:
    cluster = await start()
    async with session_of(cluster) as session:
        status = await cluster.load()
        assert (status.state, status.adapter.name, status.adapter.digest) == ("ready", "sql", DIGEST)
        (place,) = status.places
        assert (place.worker_id, place.report.rank) == ("aggregated-0", 8)
        assert session.names.get_nowait() == ["sql"], "it has heard before the load is answered"
        await session.write(admit=router_pb2.Admit(request_id="r", model="m", adapter=DIGEST))
        assert await session.placed.get() == "r"
        (listed,) = (await cluster.call("ListAdapters")).adapters
        assert (listed.adapter.source, listed.running_requests) == ("dir:/adapters/sql", 1)
        assert (await cluster.call("UnloadAdapter", name="sql")).adapter.state == "draining"
        assert session.names.get_nowait() == []
    assert len(cluster.worker.sent) == 3, "none, one to compute its digest, one with the digest"


async def test_calls_wait_for_an_apiserver_that_has_not_heard_yet(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not for long: it may hang."""
    cluster = await start()
    commands = cluster.router._term.services.commands
    monkeypatch.setattr(commands._broadcast, "_answer_seconds", 0.3)
    async with session_of(cluster) as session:
        session.hears = False
        began = time.monotonic()
        assert (await cluster.load()).state == "ready"
        assert (await cluster.call("UnloadAdapter", name="sql")).adapter.state == "draining"
        assert time.monotonic() - began >= 0.6


async def test_one_that_waits_for_a_nearer_tier_says_where_it_is(start: Start) -> None:
    """A worker whose memory is full reports no error: it can run the version from disk."""
    cluster = await start()
    wanted = {"name": "sql", "source": "dir:/adapters/sql", "prefetch": router_pb2.ADAPTER_TIER_DRAM}
    waiting = asyncio.ensure_future(cluster.call("LoadAdapter", **wanted))
    await _until(lambda: [one.digest for one in cluster.worker.orders] == [DIGEST])
    (listed,) = (await cluster.call("ListAdapters")).adapters
    assert (listed.state, waiting.done()) == ("fetching", False)
    assert listed.error == "worker aggregated-0: it is in tier disk, and wanted in tier dram"
    waiting.cancel()


async def test_it_comes_nearer_and_is_pinned(start: Start) -> None:
    cluster = await start()
    await cluster.load()
    near = await cluster.call("KeepAdapter", name="sql", tier=router_pb2.ADAPTER_TIER_DISK, wait=True)
    assert (near.adapter.pinned, near.adapter.state) == (False, "ready")
    kept = await cluster.call("KeepAdapter", name="sql", pin=True)
    assert (kept.adapter.pinned, kept.adapter.state) == (True, "ready")
    await _until(
        lambda: [(one.tier, one.pinned) for one in cluster.worker.orders] == [(AdapterTier.DRAM, True)]
    )
    waiting = asyncio.ensure_future(cluster.call("KeepAdapter", name="sql", wait=True))
    await asyncio.sleep(0.1)
    assert not waiting.done(), "the worker has it on disk only"
    await cluster.call("UnloadAdapter", name="sql")
    with pytest.raises(NotFound, match="adapter sql is draining"):
        await waiting


@pytest.mark.parametrize(
    ("call", "fields", "error", "words"),
    [
        ("LoadAdapter", {"name": "m", "source": "dir:/adapters/a"}, InvalidRequest, "the name of a model"),
        ("LoadAdapter", {"name": "a", "source": "dir:/etc"}, InvalidRequest, "not below one of"),
        ("LoadAdapter", {"name": "a", "source": "adapters"}, InvalidRequest, "an adapter comes from"),
        ("UnloadAdapter", {"name": "sqll"}, NotFound, "did you mean 'sql'"),
        ("KeepAdapter", {"name": "sqll"}, NotFound, "did you mean 'sql'"),
        ("ListAdapters", {"model": "n"}, None, ""),
    ],
)
async def test_mistakes_are_named(
    start: Start, call: str, fields: dict[str, str], error: type[LLMServeError] | None, words: str
) -> None:
    cluster = await start()
    await cluster.load()
    if error is None:
        assert list((await cluster.call(call, **fields)).adapters) == []
        return
    with pytest.raises(error, match=words):
        await cluster.call(call, **fields)


async def test_a_source_of_the_manifest_may_be_anywhere(start: Start) -> None:
    cluster = await start(AdapterWish("chat", "dir:/elsewhere"))
    await cluster.call("UnloadAdapter", name="chat")
    assert (await cluster.load("chat", "dir:/elsewhere")).state == "ready"


async def test_of_two_loads_at_once_the_earlier_one_is_told(start: Start) -> None:
    cluster = await start()
    cluster.worker.fetches = False
    first = asyncio.ensure_future(cluster.load("sql", "dir:/adapters/one"))
    await _until_fetching(cluster)
    second = asyncio.ensure_future(cluster.load("sql", "dir:/adapters/two"))
    with pytest.raises(InvalidRequest, match="loaded again, from dir:/adapters/two"):
        await first
    cluster.worker.fetches = True
    assert (await second).adapter.source == "dir:/adapters/two"


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110 - what is awaited here is another process's, as a rule
            await asyncio.sleep(0.01)


async def _until_fetching(cluster: Cluster) -> None:
    await _until(lambda: any(one.source.startswith("dir:/adapters") for one in cluster.worker.orders))


async def test_a_router_that_stops_while_it_loads_is_followed_by_one_that_goes_on(start: Start) -> None:
    first = await start()
    first.worker.fetches = False
    waiting = asyncio.ensure_future(first.load())
    await _until_fetching(first)
    (before,) = (await first.call("ListAdapters")).adapters
    await first.router.aclose()
    with pytest.raises(Unavailable):
        await waiting
    second = await start()
    (kept,) = (await second.call("ListAdapters")).adapters
    assert kept.adapter.source == before.adapter.source
    assert (await second.load()).state == "ready", "the call that is repeated joins"
    assert len({order.number for order in second.worker.orders}) == 1


async def test_a_router_that_is_killed_forgets_nothing(start: Start, tmp_path: Path) -> None:
    first = await start()
    await first.load()
    await _until(lambda: '"ready"' in _saved(tmp_path))
    second = await start()  # the first one saves nothing more: nothing changes there
    (kept,) = (await second.call("ListAdapters")).adapters
    assert (kept.adapter.name, kept.adapter.digest, kept.state) == ("sql", DIGEST, "ready")


def _saved(directory: Path) -> str:
    path = directory / "router-adapters.json"
    return path.read_text() if path.exists() else ""


async def test_a_load_for_a_request_is_known_as_such(start: Start, tmp_path: Path) -> None:
    cluster = await start()
    await cluster.call("LoadAdapter", name="sql", source="dir:/adapters/sql", implicit=True)
    await _until(lambda: '"implicit":true' in _saved(tmp_path))
    await cluster.load()
    await _until(lambda: '"implicit":true' not in _saved(tmp_path))


async def test_a_damaged_file_is_said_and_the_manifest_holds(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "router-adapters.json").write_bytes(b'{"version": 1, "registr\xff')
    with caplog.at_level(logging.WARNING):
        cluster = await start(AdapterWish("chat", "dir:/elsewhere"))
    assert "what the last leader saved of its adapters is not used" in caplog.text
    await _until(lambda: cluster.worker.orders != () and cluster.worker.orders[0].digest == DIGEST)
