"""Backoff grows to its bound, with jitter, and starts anew after a success. A busy peer is connected to."""

import asyncio
import random

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.rpc.client import Backoff, open_channel
from llmserve.rpc.server import RpcServer
from tests.support.far_away import far_away


async def test_a_peer_that_takes_its_time_is_connected_to() -> None:
    server = RpcServer("127.0.0.1:0")
    address = f"127.0.0.1:{await server.start()}"
    async with far_away(address, 0.1) as far, open_channel(far) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=30.0
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await server.aclose()


def test_grows_to_the_bound_and_resets() -> None:
    backoff = Backoff(0.1, 1.0, 2.0, random.Random(1))
    waits = [backoff.next() for _ in range(6)]
    for wait, full in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], strict=True):
        assert full / 2 <= wait <= full
    backoff.reset()
    assert backoff.next() <= 0.1


async def test_a_task_ends_whose_cancellation_was_swallowed() -> None:
    waiting = asyncio.Event()

    async def tries() -> None:
        while True:
            try:
                waiting.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass  # as gRPC does, when a call fails while it is being cancelled
            await Backoff(60, 60).pause()

    task = asyncio.create_task(tries())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
