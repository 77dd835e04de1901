"""Follows the router's orders about models: reports what there is, and hands on what is to be."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle

import grpc.aio

from llmserve.config.wanted_models import ModelOrder, ModelReport
from llmserve.core.tasks import first_done
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.models import decode_model_order, encode_model_report

# The router answers within 10 s, also when nothing has changed.
_ANSWER_SECONDS = 20.0
_PAUSE_SECONDS = 0.2
_SETTLE_SECONDS = 0.05  # progress changes often

Apply = Callable[[Sequence[ModelOrder]], None]


class ModelFollower:
    """Life: run, as one task. reports: returns those of all models. apply: gets all orders when they have
    changed, and does not wait. `report` has the changed reports sent."""

    def __init__(
        self, routers: RouterAddresses, reports: Callable[[], Sequence[ModelReport]], apply: Apply
    ) -> None:
        self._routers, self._reports, self._apply = routers, reports, apply
        self._changed = asyncio.Event()

    def report(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Never returns. A router that is away is asked again."""
        for address in cycle(self._routers.addresses):
            async with self._routers.open(address) as channel:
                stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
                with suppress(grpc.aio.AioRpcError):
                    await self._follow(stub)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _follow(self, stub: router_pb2_grpc.RouterStub) -> None:
        """Errors: AioRpcError."""
        version = 0
        while True:
            self._changed.clear()
            request = router_pb2.FollowModelsRequest(
                version=version, reports=map(encode_model_report, self._reports())
            )
            answered, _ = await first_done("models", _ask(stub, request), self._until_changed())
            if not answered.cancelled():
                answer: router_pb2.FollowModelsResponse = answered.result()
                if answer.version != version:
                    version = answer.version
                    self._apply([decode_model_order(order) for order in answer.orders])

    async def _until_changed(self) -> None:
        await self._changed.wait()
        await asyncio.sleep(_SETTLE_SECONDS)


async def _ask(
    stub: router_pb2_grpc.RouterStub, request: router_pb2.FollowModelsRequest
) -> router_pb2.FollowModelsResponse:
    answer: router_pb2.FollowModelsResponse = await stub.FollowModels(request, timeout=_ANSWER_SECONDS)
    return answer
