"""A gRPC peer that is there and does not answer any more: its streams end in time."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.rpc.client import KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS, open_channel

_SERVER = """
import asyncio
from llmserve.rpc.server import RpcServer

async def main():
    server = RpcServer("127.0.0.1:0")
    print(await server.start(), flush=True)
    await asyncio.sleep(120)

asyncio.run(main())
"""
_LATE_SECONDS = 5.0  # of a busy machine

pytestmark = pytest.mark.timeout(60)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _SERVER, stdout=PIPE)
    yield process
    process.kill()
    await process.wait()


async def test_a_stream_to_a_stopped_process_breaks_in_time(server: Process) -> None:
    assert server.stdout is not None
    port = int(await server.stdout.readline())
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        server.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS + _LATE_SECONDS):
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                await stream.read()
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
