"""The other routers of the cluster."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import grpc
import grpc.aio

from llmserve.router.leader.store.base import Term
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc


class Peers:
    """Connects when it first asks. addresses: host:port of each. call_seconds: of each question."""

    def __init__(self, addresses: Sequence[str], call_seconds: float) -> None:
        self._addresses, self._call_seconds = addresses, call_seconds
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._open = AsyncExitStack()

    async def promise(self, term: Term, seconds: float) -> bool:
        """Will none of them lead for so long? One that does not answer and is not seen to be dead may."""
        request = router_pb2.PromiseRequest(leader=term.leader, epoch=term.epoch, seconds=seconds)
        return all(await asyncio.gather(*(self._ask(address, request) for address in self._addresses)))

    async def aclose(self) -> None:
        """Idempotent."""
        await self._open.aclose()

    async def _ask(self, address: str, request: router_pb2.PromiseRequest) -> bool:
        if address not in self._channels:
            self._channels[address] = await self._open.enter_async_context(open_channel(address))
        stub = router_pb2_grpc.RouterStub(self._channels[address])  # type: ignore[no-untyped-call]  # generated
        try:
            answer: router_pb2.PromiseResponse = await stub.Promise(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError:
            return await self._does_not_run(address)
        return answer.promised

    async def _does_not_run(self, address: str) -> bool:
        """Its machine says that nobody listens there. Silence says nothing: it may be the network."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(self._call_seconds):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        writer.close()
        return False
