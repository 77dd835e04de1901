"""The router over real gRPC on loopback, with workers and apiservers that only talk to it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.config.load import parse_manifest
from llmserve.core.clock import LeaseClock
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.router.leader.state import MemoryState
from llmserve.router.placement.planner import Disaggregate
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc
from llmserve.scheduler.scheduler import Policy
from tests.support.spans import KeptSpans

WAIT_SECONDS = 30.0
_ROLES = {"prefill": common_pb2.WORKER_ROLE_PREFILL, "decode": common_pb2.WORKER_ROLE_DECODE}
Request = router_pb2.RouterSessionRequest
Requests = router_pb2.RouterSessionRequests
Response = router_pb2.RouterSessionResponse
Responses = router_pb2.RouterSessionResponses


def worker(name: str, *, epoch: int = 1, slots: int = 1, **shape: Any) -> common_pb2.WorkerInfo:
    fields: dict[str, Any] = {"model_revision": "rev", "layout": "LBHNC/vec", **shape}
    return common_pb2.WorkerInfo(
        worker_id=name,
        role=_ROLES[name.partition("-")[0]],
        address=f"127.0.0.1:{epoch}",
        epoch=epoch,
        model="m",
        kv_shape=common_pb2.KvShape(block_size_tokens=16, **fields),
        max_concurrency=slots,
    )


class Apiserver:
    """One session: says what it is told to, and keeps what it hears."""

    def __init__(self, stub: router_pb2_grpc.RouterStub, name: str) -> None:
        self._call = stub.Session()
        self._name = name
        self._heard: deque[Response] = deque()

    async def hello(self, *held: router_pb2.HeldPlacement) -> "Apiserver":
        await self.say(Request(hello=router_pb2.Hello(apiserver_id=self._name, held=held)))
        assert (await self.hear()).HasField("state")
        return self

    async def admit(self, name: str, timeout: float = 0.0, without: str = "") -> None:
        admit = router_pb2.Admit(
            request_id=name, tenant="t", model="m", timeout_seconds=timeout, excluded_workers=without.split()
        )
        await self.say(Request(admit=admit))

    async def first_token(self, name: str) -> None:
        await self.say(Request(first_token=router_pb2.FirstToken(request_id=name)))

    async def done(self, name: str) -> None:
        done = router_pb2.Done(request_id=name, outcome=common_pb2.OUTCOME_COMPLETED, output_tokens=3)
        await self.say(Request(done=done))

    async def failed(self, name: str, epoch: int = 1) -> None:
        failed = router_pb2.WorkerFailed(worker_id=name, epoch=epoch, reason="reset by peer")
        await self.say(Request(worker_failed=failed))

    async def say(self, message: Request) -> None:
        await self._call.write(Requests(messages=[message]))

    async def hear(self) -> Response:
        while not self._heard:
            async with asyncio.timeout(WAIT_SECONDS):
                batch = await self._call.read()
            assert isinstance(batch, Responses), "the router closed the session"
            self._heard.extend(batch.messages)
        return self._heard.popleft()

    async def placed(self) -> router_pb2.Placed:
        response = await self.hear()
        assert response.HasField("placed"), response
        return response.placed

    async def refused(self) -> router_pb2.Refused:
        response = await self.hear()
        assert response.HasField("refused"), response
        return response.refused

    async def workers(self) -> set[str]:
        response = await self.hear()
        assert response.HasField("state"), response
        return {info.worker_id for info in response.state.workers}

    async def at_end(self) -> bool:
        async with asyncio.timeout(WAIT_SECONDS):
            return not isinstance(await self._call.read(), Responses)

    def vanish(self) -> None:
        self._call.cancel()


@dataclass
class Cluster:
    """A running router and the ways to reach it."""

    router: RouterRole
    channel: grpc.aio.Channel
    stub: router_pb2_grpc.RouterStub

    async def register(self, *infos: common_pb2.WorkerInfo) -> None:
        for info in infos:
            await self.stub.Register(router_pb2.RegisterRequest(worker=info), timeout=WAIT_SECONDS)

    async def heartbeat(self, name: str, epoch: int = 1, waiting: int = 0) -> None:
        load = common_pb2.WorkerLoad(waiting_requests=waiting)
        request = router_pb2.HeartbeatRequest(worker_id=name, epoch=epoch, load=load)
        await self.stub.Heartbeat(request, timeout=WAIT_SECONDS)

    async def apiserver(self, name: str = "api", *held: router_pb2.HeldPlacement) -> Apiserver:
        return await Apiserver(self.stub, name).hello(*held)

    async def status(self) -> router_pb2.GetClusterStatusResponse:
        request = router_pb2.GetClusterStatusRequest()
        status: router_pb2.GetClusterStatusResponse = await self.stub.GetClusterStatus(
            request, timeout=WAIT_SECONDS
        )
        return status

    async def until(self, holds: Callable[[router_pb2.GetClusterStatusResponse], bool]) -> None:
        """For what the router notices in its own time: a stream that broke."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds(await self.status()):  # noqa: ASYNC110 - the router has no event for it
                await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        await self.channel.close(None)
        self.router.check_integrity()
        await self.router.aclose()


Start = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts routers; keyword arguments are settings."""
    async with AsyncExitStack() as stack:

        async def run(listen: str = "127.0.0.1:0", **changes: object) -> Cluster:
            # The prompts of these tests are empty: alone, a decode worker would always do.
            settings = replace(RouterSettings(disaggregate=Disaggregate.ALWAYS), **changes)  # type: ignore[arg-type]
            router = RouterRole(settings, listen=listen)
            stack.push_async_callback(router.aclose)
            await router.start()
            channel = open_channel(f"127.0.0.1:{router.port}")
            cluster = Cluster(router, channel, router_pb2_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]
            stack.push_async_callback(cluster.aclose)
            return cluster

        yield run


@pytest.fixture
async def cluster(start: Start) -> Cluster:
    """One prefill and one decode worker, each with room for one request."""
    cluster = await start()
    await cluster.register(worker("prefill-0"), worker("decode-0"))
    return cluster


async def test_places_in_turn_under_the_limit(cluster: Cluster) -> None:
    one, two = await cluster.apiserver("one"), await cluster.apiserver("two")
    await one.admit("a")
    placed = await one.placed()
    assert placed.placement.prefill == worker("prefill-0")
    assert placed.placement.decode == worker("decode-0")
    await two.admit("b")
    await cluster.until(lambda status: status.queued_requests == 1)
    await one.admit("c")
    await cluster.until(lambda status: status.queued_requests == 2)
    await one.done("a")
    assert (await two.placed()).request_id == "b"
    await two.done("b")
    assert (await one.placed()).request_id == "c"


async def test_the_first_token_makes_room_for_the_next_prefill(start: Start) -> None:
    cluster = await start()
    await cluster.register(worker("prefill-0"), worker("decode-0", slots=2))
    apiserver = await cluster.apiserver()
    await apiserver.admit("a")
    await apiserver.placed()
    await apiserver.admit("b")
    await apiserver.first_token("a")
    assert (await apiserver.placed()).request_id == "b"


async def test_a_broken_session_gives_back_what_it_held(cluster: Cluster) -> None:
    lost, other = await cluster.apiserver("lost"), await cluster.apiserver("other")
    await lost.admit("runs")
    await lost.placed()
    await lost.admit("waits")
    await cluster.until(lambda status: status.queued_requests == 1)
    await other.admit("next")
    lost.vanish()
    assert (await other.placed()).request_id == "next"
    await cluster.until(lambda status: status.apiservers == 1)
    status = await cluster.status()
    assert (status.queued_requests, status.running_requests) == (0, 1)


async def test_done_withdraws_what_waits(cluster: Cluster) -> None:
    apiserver = await cluster.apiserver()
    await apiserver.admit("a")
    await apiserver.placed()
    await apiserver.admit("b")
    await apiserver.done("b")
    await apiserver.admit("c")
    await apiserver.done("a")
    assert (await apiserver.placed()).request_id == "c"


async def test_a_restarted_router_counts_again_what_is_held(start: Start, cluster: Cluster) -> None:
    apiserver = await cluster.apiserver()
    await apiserver.admit("a")
    placement = (await apiserver.placed()).placement
    port = cluster.router.port
    await cluster.router.aclose()
    assert await apiserver.at_end()

    again = await start(f"127.0.0.1:{port}")
    held = router_pb2.HeldPlacement(request_id="a", tenant="t", placement=placement)
    apiserver = await again.apiserver("api", held)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await again.heartbeat("decode-0")
    assert isinstance(from_grpc(refused.value), NotFound)
    await again.register(worker("prefill-0"), worker("decode-0"))
    await apiserver.workers()
    await apiserver.admit("b")
    await again.until(lambda status: status.queued_requests == 1)
    assert (await again.status()).running_requests == 1
    await apiserver.done("a")
    response = await apiserver.hear()
    while response.HasField("state"):  # the second registration may come apart from the first
        response = await apiserver.hear()
    assert response.placed.request_id == "b"


async def test_a_silent_worker_is_lost_and_used_again_when_it_returns(start: Start) -> None:
    cluster = await start(expiry_seconds=1.0)
    await cluster.register(worker("prefill-0"), worker("decode-0"))
    apiserver = await cluster.apiserver()
    async with asyncio.timeout(WAIT_SECONDS):
        while await apiserver.workers():
            pass
    status = await cluster.status()
    assert [(w.available, w.reason) for w in status.workers] == [(False, "no heartbeat for 1 s")] * 2
    await apiserver.admit("a")
    await cluster.heartbeat("prefill-0")
    await cluster.heartbeat("decode-0")
    response = await apiserver.hear()
    while response.HasField("state"):
        response = await apiserver.hear()
    assert response.placed.request_id == "a"


async def test_a_failed_worker_rests_until_its_next_heartbeat(start: Start) -> None:
    cluster = await start()
    await cluster.register(worker("prefill-0", slots=4), worker("decode-0", slots=2))
    apiserver = await cluster.apiserver()
    await apiserver.admit("a")
    await apiserver.placed()
    await apiserver.failed("decode-0")
    await apiserver.admit("a", without="decode-0")  # again, as after a lost worker
    await cluster.until(lambda status: status.queued_requests == 1)
    (suspect,) = [w for w in (await cluster.status()).workers if not w.available]
    assert (suspect.info.worker_id, suspect.reason) == ("decode-0", "reset by peer")
    await cluster.heartbeat("decode-0")
    assert (await apiserver.placed()).request_id == "a"


async def test_refusals_name_their_error(start: Start) -> None:
    cluster = await start(policy=Policy(max_queued_requests=1))
    apiserver = await cluster.apiserver()
    await apiserver.admit("nobody there", timeout=0.1)
    refused = await apiserver.refused()
    assert (refused.error, refused.outcome) == ("NoWorkerAvailable", common_pb2.OUTCOME_EVICTED)
    assert "no prefill and no decode worker" in refused.message

    await cluster.register(worker("prefill-0"), worker("decode-0"))
    while await apiserver.workers() != {"prefill-0", "decode-0"}:
        pass
    await apiserver.admit("a")
    await apiserver.placed()
    await apiserver.admit("b", timeout=1.0)
    await apiserver.admit("c")
    refused = await apiserver.refused()
    assert (refused.request_id, refused.error) == ("c", "QueueFull")
    assert refused.outcome == common_pb2.OUTCOME_REJECTED
    assert refused.retry_after_seconds > 0
    refused = await apiserver.refused()
    assert (refused.request_id, refused.error) == ("b", "QueueTimeout")
    assert refused.outcome == common_pb2.OUTCOME_EVICTED


@pytest.mark.parametrize(
    ("field", "other", "mine"),
    [
        ("layout", "LBHNC/amx", "LBHNC/vec"),
        ("model_revision", "edited", "rev"),
        ("computation", "float16 up to 2048 tokens", ""),
    ],
)
async def test_kv_that_does_not_fit_is_refused_at_the_door(
    cluster: Cluster, field: str, other: str, mine: str
) -> None:
    shape: dict[str, Any] = {field: other}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cluster.register(worker("decode-1", **shape))
    error = from_grpc(refused.value)
    assert isinstance(error, InvalidRequest)
    assert f"{field} {other!r} differs from {mine!r}" in error.message


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Request()],
        [Request(admit=router_pb2.Admit(request_id="a", model="m"))],
        [Request(hello=router_pb2.Hello())],
    ],
)
async def test_a_session_begins_with_hello(cluster: Cluster, messages: list[Request]) -> None:
    call = cluster.stub.Session()
    await call.write(Requests(messages=messages))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert isinstance(from_grpc(refused.value), InvalidRequest)


async def test_what_comes_together_is_obeyed_in_order(cluster: Cluster) -> None:
    """Even what comes with Hello, and up to what is wrong."""

    def admit(name: str) -> Request:
        return Request(admit=router_pb2.Admit(request_id=name, tenant="t", model="m"))

    hello = Request(hello=router_pb2.Hello(apiserver_id="api-2"))
    done = Request(done=router_pb2.Done(request_id="a", outcome=common_pb2.OUTCOME_CANCELLED))
    call = cluster.stub.Session()
    await call.write(Requests(messages=[hello, admit("a"), done, admit("a")]))
    assert await _placed(call, 2) == ["a", "a"]
    await call.write(Requests(messages=[done, admit("b"), admit(""), admit("c")]))
    assert await _placed(call, 1) == ["b"]
    await cluster.until(lambda status: (status.running_requests, status.apiservers) == (0, 0))


async def _placed(call: Any, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        batch = await asyncio.wait_for(call.read(), WAIT_SECONDS)
        names += [answer.placed.request_id for answer in batch.messages if answer.HasField("placed")]
    return names


async def test_nonsense_in_a_session_ends_it_and_gives_back(cluster: Cluster) -> None:
    apiserver = await cluster.apiserver()
    await apiserver.admit("a")
    await apiserver.placed()
    await apiserver.admit("")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await apiserver.hear()
    assert isinstance(from_grpc(refused.value), InvalidRequest)
    await cluster.until(lambda status: (status.running_requests, status.apiservers) == (0, 0))


async def test_a_returning_apiserver_ends_its_older_session(cluster: Cluster) -> None:
    old = await cluster.apiserver("api")
    new = await cluster.apiserver("api")
    assert await old.at_end()
    await new.admit("a")
    assert (await new.placed()).request_id == "a"
    assert (await cluster.status()).apiservers == 1


async def test_status_shows_workers_and_load(cluster: Cluster) -> None:
    apiserver = await cluster.apiserver()
    await apiserver.admit("a")
    await apiserver.placed()
    await cluster.heartbeat("decode-0", waiting=3)
    status = await cluster.status()
    assert (status.running_requests, status.queued_requests, status.apiservers) == (1, 0, 1)
    by_name = {w.info.worker_id: w for w in status.workers}
    assert by_name["decode-0"].load.waiting_requests == 3
    assert by_name["decode-0"].placed_requests == 1
    assert by_name["prefill-0"].available
    assert by_name["prefill-0"].heartbeat_age_seconds < WAIT_SECONDS


async def test_a_worker_that_leaves_is_gone_at_once(cluster: Cluster) -> None:
    apiserver = await cluster.apiserver()
    request = router_pb2.DeregisterRequest(worker_id="decode-0", epoch=1)
    await cluster.stub.Deregister(request, timeout=WAIT_SECONDS)
    assert await apiserver.workers() == {"prefill-0"}


async def test_the_health_service_answers(cluster: Cluster) -> None:
    health = health_pb2_grpc.HealthStub(cluster.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="llmserve.v1.Router"), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_time_passes_in_a_term(start: Start) -> None:
    """The task that lets it was started by whoever leads: nothing else evicts what waits."""
    cluster = await start()
    apiserver = await cluster.apiserver()
    await apiserver.admit("a", timeout=0.05)
    assert (await apiserver.refused()).error == "NoWorkerAvailable"


async def test_spans_are_sent_even_when_a_stop_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(MemoryState):
        async def aclose(self) -> None:
            raise ConnectionError("reset by peer")

    closed: list[bool] = []

    class Watched(KeptSpans):
        async def aclose(self) -> None:
            closed.append(True)

    monkeypatch.setattr("llmserve.router.role.open_tracer", lambda *_, **__: Watched())
    manifest = parse_manifest("kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n", "m.yaml")
    router = RouterRole(
        RouterSettings.of(manifest), listen="127.0.0.1:0", state=Lost(LeaseClock()), manifest=manifest
    )
    await router.start()
    with pytest.raises(ConnectionError):
        await router.aclose()
    assert closed == [True]
