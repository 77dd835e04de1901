"""What speculation brings, from the steps of a simulated engine to the status of the router and the metrics:
nothing is a fake."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from llmserve.config.schema import Speculation
from llmserve.core.request import FinishReason
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2, router_pb2_grpc
from tests.integration.test_worker_service import Cluster, Stream

WAIT_SECONDS = 20.0


async def test_proposals_that_lose_are_off_and_the_router_knows() -> None:
    """Three wrong proposals make a step of 1 ms last 4."""
    async with AsyncExitStack() as stack:
        router = RouterRole(RouterSettings(heartbeat_seconds=0.05), listen="127.0.0.1:0")
        stack.push_async_callback(router.aclose)
        await router.start()
        cluster, address = Cluster(stack), f"127.0.0.1:{router.port}"
        worker, channel = await cluster.worker(
            speculation=Speculation(method="ngram", tokens=3),
            sim={"acceptance": 0.0, "proposed_token_seconds": 0.001},
            routers=(address,),
        )
        assert worker._membership is not None
        await worker._membership.registered.wait()
        stream = Stream(channel)
        await stream.generate("r", max_tokens=160)
        assert (await stream.last("r")).finish_reason is FinishReason.LENGTH
        asked = await stack.enter_async_context(open_channel(address))
        stub = router_pb2_grpc.RouterStub(asked)  # type: ignore[no-untyped-call]  # generated
        known = await _speculation(stub)
    (gain,) = known.gains
    assert (gain.batch, gain.proposes) == (1, False)
    assert gain.gain == pytest.approx(0.25)
    assert 4 <= known.verifications < 20
    assert (known.proposed_tokens, known.accepted_tokens) == (3 * known.verifications, 0)
    counted = cluster.registry.get_sample_value("worker_speculation_proposed_tokens_total")
    assert counted == known.proposed_tokens
    assert cluster.registry.get_sample_value("worker_speculation_on", {"batch": "1"}) == 0


async def _speculation(stub: router_pb2_grpc.RouterStub) -> common_pb2.Speculation:
    """Waits for a heartbeat after the switch."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            status = await stub.GetClusterStatus(router_pb2.GetClusterStatusRequest())
            (worker,) = status.workers
            known: common_pb2.Speculation = worker.load.speculation
            if any(not gain.proposes for gain in known.gains):
                return known
            await asyncio.sleep(0.02)
