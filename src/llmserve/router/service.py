"""llmserve.v1.Router over gRPC: each call goes to the services of the current term."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import WorkerId
from llmserve.router.codec import decode_worker, encode_order, encode_peers
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.leader.term import LeaderTerm
from llmserve.rpc.adapters import decode_reports, encode_orders
from llmserve.rpc.codec import decode_load
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.permissions import check_name

_log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class RouterService(router_pb2_grpc.RouterServicer):
    """One for the process. It runs on one event loop and is not thread-safe."""

    def __init__(self, term: LeaderTerm, leader_check: LeaderCheck) -> None:
        self._term, self._leader_check = term, leader_check

    # -- apiservers

    def Session(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[router_pb2.RouterSessionRequests], context: _Context
    ) -> AsyncIterator[router_pb2.RouterSessionResponses]:
        return self._term.services.sessions.converse(request_iterator, context)

    # -- workers: each call raises NotLeader on a standby

    async def Register(  # noqa: N802
        self, request: router_pb2.RegisterRequest, context: _Context
    ) -> router_pb2.RegisterResponse:
        """Errors: InvalidRequest, as ClusterMembership.register."""
        check_name(context, request.worker.worker_id)
        services, spec = self._term.services, decode_worker(request.worker)
        settings = services.live.settings
        try:
            with services.event_loop.deciding() as effects:
                effects += services.controller.register(spec)
        except InvalidRequest as error:
            _log.warning("worker %s refused: %s", spec.worker_id, error.message)
            raise
        return router_pb2.RegisterResponse(
            heartbeat_seconds=settings.heartbeat_seconds, expiry_seconds=settings.expiry_seconds
        )

    async def Heartbeat(  # noqa: N802
        self, request: router_pb2.HeartbeatRequest, context: _Context
    ) -> router_pb2.HeartbeatResponse:
        """Errors: NotFound, as ClusterMembership.heartbeat."""
        check_name(context, request.worker_id)
        services, worker_id, load = (
            self._term.services,
            WorkerId(request.worker_id),
            decode_load(request.load),
        )
        reports = decode_reports(request.adapters) if request.HasField("adapters") else None
        with services.event_loop.deciding() as effects:
            effects += services.controller.heartbeat(
                worker_id, request.epoch, load, draining=request.draining, reports=reports
            )
        membership, settings = services.controller.membership, services.live.settings
        known = request.members_version == membership.version
        answer = encode_peers(membership.version, () if known else membership.kv_sources(worker_id))
        if order := membership.order_of(worker_id):
            answer.drain.CopyFrom(encode_order(order))
        orders = services.controller.adapters.lifecycle.orders
        answer.adapters_version = orders.version(worker_id)
        if answer.adapters_version != request.adapters_version:
            answer.adapters.CopyFrom(encode_orders(orders.orders(worker_id)))
        answer.heartbeat_seconds, answer.log_level = settings.heartbeat_seconds, settings.log_level
        return answer

    async def Deregister(  # noqa: N802
        self, request: router_pb2.DeregisterRequest, context: _Context
    ) -> router_pb2.DeregisterResponse:
        check_name(context, request.worker_id)
        services = self._term.services
        with services.event_loop.deciding() as effects:
            effects += services.controller.deregister(WorkerId(request.worker_id), request.epoch)
        _log.info("worker %s deregistered", request.worker_id)
        return router_pb2.DeregisterResponse()

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

    async def ListRequests(  # noqa: N802
        self, request: router_pb2.ListRequestsRequest, context: _Context
    ) -> router_pb2.ListRequestsResponse:
        return await self._term.services.commands.list_requests(request)

    # -- adapters

    async def LoadAdapter(  # noqa: N802
        self, request: router_pb2.LoadAdapterRequest, context: _Context
    ) -> router_pb2.LoadAdapterResponse:
        return await self._term.services.adapters.load(request)

    async def UnloadAdapter(  # noqa: N802
        self, request: router_pb2.UnloadAdapterRequest, context: _Context
    ) -> router_pb2.UnloadAdapterResponse:
        return await self._term.services.adapters.unload(request)

    async def KeepAdapter(  # noqa: N802
        self, request: router_pb2.KeepAdapterRequest, context: _Context
    ) -> router_pb2.KeepAdapterResponse:
        return await self._term.services.adapters.keep(request)

    async def ListAdapters(  # noqa: N802
        self, request: router_pb2.ListAdaptersRequest, context: _Context
    ) -> router_pb2.ListAdaptersResponse:
        return self._term.services.adapters.list(request)

    # -- models

    async def LoadModel(  # noqa: N802
        self, request: router_pb2.LoadModelRequest, context: _Context
    ) -> router_pb2.ModelStatus:
        return self._term.services.models.load(request)

    async def UnloadModel(  # noqa: N802
        self, request: router_pb2.UnloadModelRequest, context: _Context
    ) -> router_pb2.ModelStatus:
        return self._term.services.models.unload(request)

    async def ListModels(  # noqa: N802
        self, request: router_pb2.ListModelsRequest, context: _Context
    ) -> router_pb2.ListModelsResponse:
        return self._term.services.models.list()

    async def FollowModels(  # noqa: N802
        self, request: router_pb2.FollowModelsRequest, context: _Context
    ) -> router_pb2.FollowModelsResponse:
        return await self._term.services.models.follow(request)

    # -- other routers

    async def Promise(  # noqa: N802
        self, request: router_pb2.PromiseRequest, context: _Context
    ) -> router_pb2.PromiseResponse:
        promised = self._leader_check.promise(request.leader, request.epoch, request.seconds)
        return router_pb2.PromiseResponse(promised=promised)
