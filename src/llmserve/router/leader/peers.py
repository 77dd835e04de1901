"""The other routers of the cluster."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import grpc
import grpc.aio

from llmserve.core.addresses import split_address
from llmserve.router.leader.state import Term
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc


class Peers:
    """Connects on the first question. addresses: host:port of each other router. call_seconds: deadline of
    each question."""

    def __init__(
        self, addresses: Sequence[str], call_seconds: float, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        self._addresses, self._call_seconds, self._credentials = addresses, call_seconds, credentials
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._open = AsyncExitStack()

    async def promise(self, term: Term, seconds: float) -> bool:
        """True: none of them will lead for that many seconds. A router that neither answers nor is seen to
        be dead may lead."""
        request = router_pb2.PromiseRequest(leader=term.leader, epoch=term.epoch, seconds=seconds)
        return all(await asyncio.gather(*(self._ask(address, request) for address in self._addresses)))

    async def aclose(self) -> None:
        """Idempotent."""
        await self._open.aclose()

    async def _ask(self, address: str, request: router_pb2.PromiseRequest) -> bool:
        if address not in self._channels:
            channel = open_channel(address, self._credentials, CallerRole.ROUTER)
            self._channels[address] = await self._open.enter_async_context(channel)
        stub = router_pb2_grpc.RouterStub(self._channels[address])  # type: ignore[no-untyped-call]  # generated
        try:
            answer: router_pb2.PromiseResponse = await stub.Promise(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError:
            return await self._does_not_run(address)
        return answer.promised

    async def _does_not_run(self, address: str) -> bool:
        """True: its machine refuses the connection, so nothing listens there. Silence proves nothing: it
        may be the network."""
        try:
            async with asyncio.timeout(self._call_seconds):
                _, writer = await asyncio.open_connection(*split_address(address))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        writer.close()
        return False
