"""One question to whichever router leads, from those who have no session with it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc.aio

from llmserve.core.errors import LLMServeError, Unavailable
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2_grpc
from llmserve.rpc.status import from_grpc

_T = TypeVar("_T")


async def ask_leader(
    routers: Sequence[str], ask: Callable[[router_pb2_grpc.RouterStub], Awaitable[_T]]
) -> _T:
    """routers: HOST:PORT of each; they are tried in turn. Errors: Unavailable when none leads or answers;
    what the leader says."""
    away: LLMServeError = Unavailable("no router is known")
    for address in routers:
        async with open_channel(address) as channel:
            try:
                return await ask(router_pb2_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]
            except grpc.aio.AioRpcError as error:
                away = from_grpc(error)
                if not isinstance(away, Unavailable):
                    raise away from error
    raise away
