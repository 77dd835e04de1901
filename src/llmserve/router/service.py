"""llmserve.v1.Router over gRPC: each call goes to the services of the current term."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from llmserve.router.leader.election import LeaderCheck
from llmserve.router.leader.term import LeaderTerm
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class RouterService(router_pb2_grpc.RouterServicer):
    """One for the process. It runs on one event loop and is not thread-safe."""

    def __init__(self, term: LeaderTerm, leader_check: LeaderCheck) -> None:
        self._term, self._leader_check = term, leader_check

    # -- apiservers

    def Session(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[router_pb2.RouterSessionRequest], context: _Context
    ) -> AsyncIterator[router_pb2.RouterSessionResponse]:
        return self._term.services.sessions.converse(request_iterator, context)

    # -- workers

    async def Register(  # noqa: N802
        self, request: router_pb2.RegisterRequest, context: _Context
    ) -> router_pb2.RegisterResponse:
        return self._term.services.workers.register(request)

    async def Heartbeat(  # noqa: N802
        self, request: router_pb2.HeartbeatRequest, context: _Context
    ) -> router_pb2.HeartbeatResponse:
        return self._term.services.workers.heartbeat(request)

    async def Deregister(  # noqa: N802
        self, request: router_pb2.DeregisterRequest, context: _Context
    ) -> router_pb2.DeregisterResponse:
        return self._term.services.workers.deregister(request)

    # -- operators

    async def Drain(  # noqa: N802
        self, request: router_pb2.DrainRequest, context: _Context
    ) -> router_pb2.DrainResponse:
        return self._term.services.commands.drain(request)

    async def GetClusterStatus(  # noqa: N802
        self, request: router_pb2.GetClusterStatusRequest, context: _Context
    ) -> router_pb2.GetClusterStatusResponse:
        return self._term.services.commands.status()

    async def Reload(  # noqa: N802
        self, request: router_pb2.ReloadRequest, context: _Context
    ) -> router_pb2.ReloadResponse:
        return await self._term.services.commands.reload(request)

    async def Explain(  # noqa: N802
        self, request: router_pb2.ExplainRequest, context: _Context
    ) -> router_pb2.ExplainResponse:
        return await self._term.services.commands.explain(request)

    # -- other routers

    async def Promise(  # noqa: N802
        self, request: router_pb2.PromiseRequest, context: _Context
    ) -> router_pb2.PromiseResponse:
        promised = self._leader_check.promise(request.leader, request.epoch, request.seconds)
        return router_pb2.PromiseResponse(promised=promised)
