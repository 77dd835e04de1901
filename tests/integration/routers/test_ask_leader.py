"""One call to routers: who is busy is waited for, who is away is not."""

import asyncio
import time
from contextlib import closing
from typing import Any

import pytest

from llmserve.core.errors import Unavailable
from llmserve.rpc.adapter_calls import AdapterClient
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.server import RpcServer

_BUSY_SECONDS = 2.5  # longer than a connection among several gets


class _Router(router_pb2_grpc.RouterServicer):
    async def ListAdapters(self, request: Any, context: Any) -> router_pb2.ListAdaptersResponse:  # noqa: N802
        return router_pb2.ListAdaptersResponse()


class _BusyFront:
    """Lets each connection through to the router after a while."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: set[asyncio.Task[Any]] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        with closing(writer):
            await asyncio.sleep(_BUSY_SECONDS)
            own_reader, own_writer = await asyncio.open_connection("127.0.0.1", self._port)
            with closing(own_writer):
                await asyncio.gather(_copy(reader, own_writer), _copy(own_reader, writer))

    async def aclose(self) -> None:
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(1 << 16):
        writer.write(piece)
    writer.close()


async def test_the_only_router_is_waited_for_while_it_is_busy() -> None:
    """As on a machine on which everything starts at once."""
    server = RpcServer("127.0.0.1:0")
    server.add(router_pb2_grpc.add_RouterServicer_to_server, _Router(), "llmserve.v1.Router")
    front = _BusyFront(await server.start())
    listener = await asyncio.start_server(front.take, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        assert await AdapterClient(RouterAddresses((address,))).list() == []
        with pytest.raises(Unavailable):
            await AdapterClient(RouterAddresses((address, "127.0.0.1:1"))).list()
    finally:
        listener.close()
        await front.aclose()
        await server.aclose()


async def test_a_router_that_is_away_is_noticed_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await AdapterClient(RouterAddresses(("127.0.0.1:1",))).list()
    assert time.monotonic() - began < _BUSY_SECONDS
