"""Leaders that die, hang, leave and come back; a Redis server that does."""

import asyncio
import time
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.apiserver.links.requests import AdmissionRefused
from llmserve.core.errors import NotFound, NotLeader, RouterUnavailable, Unavailable
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses, ask_leader, explain_request, reload_cluster
from llmserve.rpc.status import from_grpc
from tests.integration.routers.conftest import SOON, Cluster

TAKEOVER_SECONDS = 3.0
LONGER_THAN_A_LEASE = 3.0
Request, Requests = router_pb2.RouterSessionRequest, router_pb2.RouterSessionRequests


async def test_a_killed_leader_is_followed_and_nothing_is_lost(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(), cluster.routers
    first = await routers.leader()
    held = [await api.place() for _ in range(4)]
    waiting = asyncio.create_task(api.place())
    await asyncio.sleep(0.3)
    killed_at = time.monotonic()
    routers.kill(first)
    second = await routers.leader(other_than=first)
    async with asyncio.timeout(SOON):
        while (status := await routers.status(second)) is None or status.running_requests < 4:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    assert not waiting.done()  # what runs is counted before anything is placed
    api.done(held[0])
    await asyncio.wait_for(waiting, SOON)
    assert time.monotonic() - killed_at < TAKEOVER_SECONDS
    routers.start(first)
    async with asyncio.timeout(SOON):
        while await routers.status(first) is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert await routers.leader() == second


async def test_a_leader_that_stops_in_order_is_followed_at_once(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(), cluster.routers
    held = await api.place()
    first = await routers.leader()
    began = time.monotonic()
    assert routers.stop(first) == 0
    await asyncio.wait_for(api.place(), SOON)
    assert time.monotonic() - began < TAKEOVER_SECONDS
    api.done(held)


async def test_a_leader_that_was_paused_places_nothing_when_it_wakes(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(), cluster.routers
    first = await routers.leader()
    call = routers.stub(first).Session()
    await call.write(Requests(messages=[Request(hello=router_pb2.Hello(apiserver_id="faithful"))]))
    await call.read()
    epoch = await routers.epoch(first)
    routers.pause(first)
    admit = router_pb2.Admit(request_id="late", tenant="t", model="m")
    await call.write(Requests(messages=[Request(admit=admit)]))
    paused_at = time.monotonic()
    second = await routers.leader(other_than=first)
    await asyncio.wait_for(api.place(), SOON)
    assert time.monotonic() - paused_at < TAKEOVER_SECONDS + 2.0  # it has to be noticed that it hangs
    assert await routers.epoch(second) > epoch
    routers.resume(first)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(_no_place(call), SOON)
    assert isinstance(from_grpc(refused.value), NotLeader)
    assert routers.addresses[second] in await _refusal(cluster, first)
    assert await routers.leader() == second


async def _no_place(call: Any) -> None:
    while isinstance(batch := await call.read(), router_pb2.RouterSessionResponses):
        assert not any(message.HasField("placed") for message in batch.messages), batch


async def test_the_standby_says_so(cluster: Cluster) -> None:
    routers = cluster.routers
    leader = await routers.leader()
    assert f"leader is at {routers.addresses[leader]}" in await _refusal(cluster, 1 - leader)
    async with open_channel(routers.addresses[1 - leader]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        of = {
            name: (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
            for name in ("", "llmserve.v1.Router")
        }
    assert of[""] == health_pb2.HealthCheckResponse.SERVING
    assert of["llmserve.v1.Router"] == health_pb2.HealthCheckResponse.NOT_SERVING


async def _refusal(cluster: Cluster, index: int) -> str:
    """What a worker is told there. The standby asks who leads a few times a second."""
    async with asyncio.timeout(SOON):
        while True:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await cluster.routers.stub(index).Heartbeat(router_pb2.HeartbeatRequest(worker_id="w"))
            error = from_grpc(refused.value)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert isinstance(error, NotLeader)
            if "not known" not in error.message:
                return error.message
            await asyncio.sleep(0.1)


async def _workers(cluster: Cluster, index: int) -> set[str]:
    """Those that the router knows."""
    status = await cluster.routers.status(index)
    return {worker.info.worker_id for worker in status.workers} if status else set()


async def test_commands_reach_the_leader_whichever_router_they_ask_first(cluster: Cluster) -> None:
    """A standby knows no worker and no apiserver: it must not answer for the leader."""
    routers = cluster.routers
    leader = await routers.leader()
    standby_first = RouterAddresses((routers.addresses[1 - leader], routers.addresses[leader]))
    await cluster.worker("decode-0", slots=1)
    order = router_pb2.DrainRequest(
        worker_id="decode-0", order=router_pb2.DrainOrder(drain=False, timeout_seconds=1.0)
    )
    async with asyncio.timeout(SOON):
        while "decode-0" not in await _workers(cluster, leader):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    answer = await ask_leader(standby_first, lambda stub: stub.Drain(order, timeout=SOON))
    assert answer.timeout_seconds == 1.0
    text = routers.manifest_text()
    assert (await reload_cluster(standby_first, text, "m.yaml")).lines() == ["nothing has changed"]
    with pytest.raises(NotFound, match="no apiserver remembers"):
        await explain_request(standby_first, "gone")
    with pytest.raises(Unavailable, match="leader is at"):
        await explain_request(RouterAddresses(standby_first.addresses[:1]), "gone")


async def test_the_leader_goes_on_without_redis(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(), cluster.routers
    leader = await routers.leader()
    epoch = await routers.epoch(leader)
    cluster.valkey.kill()
    await asyncio.sleep(LONGER_THAN_A_LEASE)
    api.done(await asyncio.wait_for(api.place(), SOON))
    status = await routers.status(leader)
    assert status is not None
    assert (status.leads, status.epoch) == (True, epoch)
    assert f"127.0.0.1:{cluster.valkey.port}" in status.state_trouble
    assert await routers.epoch(1 - leader) == 0
    cluster.valkey.start()
    await asyncio.sleep(LONGER_THAN_A_LEASE)
    status = await routers.status(leader)
    assert status is not None
    assert (status.leads, status.epoch, status.state_trouble) == (True, epoch, "")
    assert await routers.epoch(1 - leader) == 0
    routers.kill(leader)  # the lease is in Redis again: it is followed as ever
    api.done(await asyncio.wait_for(api.place(), TAKEOVER_SECONDS))


async def test_the_last_router_goes_on_without_redis(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(), cluster.routers
    leader = await routers.leader()
    epoch = await routers.epoch(leader)
    routers.kill(1 - leader)
    cluster.valkey.kill()
    await asyncio.sleep(LONGER_THAN_A_LEASE)
    api.done(await asyncio.wait_for(api.place(), SOON))
    assert await routers.epoch(leader) == epoch


async def test_without_redis_nobody_follows_a_leader_and_requests_wait(cluster: Cluster) -> None:
    api, hasty = cluster.apiserver(patience_seconds=60.0), cluster.apiserver("hasty", patience_seconds=0.5)
    routers = cluster.routers
    held = await api.place()
    leader = await routers.leader()
    cluster.valkey.kill()
    routers.kill(leader)
    waiting = asyncio.create_task(api.place())
    with pytest.raises(AdmissionRefused) as refused:
        await asyncio.wait_for(hasty.place(), SOON)
    assert isinstance(refused.value.error, RouterUnavailable)
    assert refused.value.error.retry_after_seconds
    assert await routers.epoch(1 - leader) == 0
    assert not waiting.done()
    cluster.valkey.start()
    await asyncio.wait_for(waiting, SOON)
    status = await routers.status(1 - leader)
    assert status is not None
    assert status.running_requests == 2
    api.done(held)


async def test_both_routers_are_restarted(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(patience_seconds=60.0), cluster.routers
    held = await api.place()
    epoch = await routers.epoch(await routers.leader())
    routers.kill(0, 1)
    routers.start(0, 1)
    await asyncio.wait_for(api.place(), SOON)
    leader = await routers.leader()
    assert await routers.epoch(leader) > epoch
    status = await routers.status(leader)
    assert status is not None
    assert status.running_requests == 2
    api.done(held)
