"""llmserve.v1.Router: each call goes to whom it concerns.

What workers tell the router, and are told."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import WorkerId
from llmserve.router.admin.commands import OperatorCalls, RouterCommands
from llmserve.router.admin.reload import RouterLiveSettings
from llmserve.router.codec import decode_worker, encode_order, encode_peers
from llmserve.router.controller import Controller
from llmserve.router.event_loop import EventLoop
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.observe import MetricsRecorder, QueueSpans
from llmserve.router.session_calls import SessionCalls
from llmserve.router.settings import RouterSettings
from llmserve.rpc.codec import decode_load
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.tracing.base import NO_TRACER, Tracer

_Context = grpc.aio.ServicerContext[Any, Any]


class RouterService(router_pb2_grpc.RouterServicer):
    """Life: run (a task of the owner's) ... -> aclose. One loop; not thread-safe. One for each term: it
    decides nothing without a mandate."""

    def __init__(
        self,
        controller: Controller,
        settings: RouterSettings,
        clock: Clock,
        recorder: MetricsRecorder,
        kv_watch: KvWatch,
        leader_check: LeaderCheck,
        manifest: Manifest | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """manifest: what a reload is compared with; without one there is none."""
        self._leader_check = leader_check
        spans = QueueSpans(tracer)
        self._event_loop = event_loop = EventLoop(controller, clock, recorder, kv_watch, leader_check, spans)
        live = self._live = RouterLiveSettings(controller, event_loop, settings)
        operators = RouterCommands(manifest, event_loop.streams.senders, live.apply)
        sign_of_life = settings.terms.sign_of_life_seconds
        self._sessions = SessionCalls(controller, event_loop, leader_check, operators, sign_of_life)
        self._workers = WorkerCalls(controller, event_loop, live)
        self._operators = OperatorCalls(controller, clock, kv_watch, leader_check, operators, live)

    @property
    def log_level(self) -> str:
        """As RouterSettings.log_level, now."""
        return self._live.settings.log_level

    async def run(self) -> None:
        """Does what is due, for ever. Errors: NotLeader, when the mandate has ended."""
        await self._event_loop.run()

    async def aclose(self) -> None:
        """Ends the sessions; apiservers keep what runs and come back to the next router."""
        await self._sessions.aclose()

    # -- apiservers

    def Session(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[router_pb2.RouterSessionRequest], context: _Context
    ) -> AsyncIterator[router_pb2.RouterSessionResponse]:
        return self._sessions.converse(request_iterator, context)

    # -- workers

    async def Register(  # noqa: N802
        self, request: router_pb2.RegisterRequest, context: _Context
    ) -> router_pb2.RegisterResponse:
        return self._workers.register(request)

    async def Heartbeat(  # noqa: N802
        self, request: router_pb2.HeartbeatRequest, context: _Context
    ) -> router_pb2.HeartbeatResponse:
        return self._workers.heartbeat(request)

    async def Deregister(  # noqa: N802
        self, request: router_pb2.DeregisterRequest, context: _Context
    ) -> router_pb2.DeregisterResponse:
        return self._workers.deregister(request)

    # -- operators

    async def Drain(  # noqa: N802
        self, request: router_pb2.DrainRequest, context: _Context
    ) -> router_pb2.DrainResponse:
        return self._operators.drain(request)

    async def GetClusterStatus(  # noqa: N802
        self, request: router_pb2.GetClusterStatusRequest, context: _Context
    ) -> router_pb2.GetClusterStatusResponse:
        return self._operators.status()

    async def Reload(  # noqa: N802
        self, request: router_pb2.ReloadRequest, context: _Context
    ) -> router_pb2.ReloadResponse:
        return await self._operators.reload(request)

    async def Explain(  # noqa: N802
        self, request: router_pb2.ExplainRequest, context: _Context
    ) -> router_pb2.ExplainResponse:
        return await self._operators.explain(request)

    # -- other routers

    async def Promise(  # noqa: N802
        self, request: router_pb2.PromiseRequest, context: _Context
    ) -> router_pb2.PromiseResponse:
        promised = self._leader_check.promise(request.leader, request.epoch, request.seconds)
        return router_pb2.PromiseResponse(promised=promised)


_log = logging.getLogger(__name__)


class WorkerCalls:
    """Errors of each: NotLeader."""

    def __init__(self, controller: Controller, event_loop: EventLoop, live: RouterLiveSettings) -> None:
        self._controller, self._event_loop, self._live = controller, event_loop, live

    def register(self, request: router_pb2.RegisterRequest) -> router_pb2.RegisterResponse:
        """Errors: InvalidRequest, as ClusterMembership.register."""
        spec, settings = decode_worker(request.worker), self._live.settings
        try:
            self._event_loop.decide(lambda: self._controller.register(spec))
        except InvalidRequest as error:
            _log.warning("worker %s refused: %s", spec.worker_id, error.message)
            raise
        return router_pb2.RegisterResponse(
            heartbeat_seconds=settings.heartbeat_seconds, expiry_seconds=settings.expiry_seconds
        )

    def heartbeat(self, request: router_pb2.HeartbeatRequest) -> router_pb2.HeartbeatResponse:
        """Errors: NotFound, as ClusterMembership.heartbeat."""
        worker_id, load, draining = WorkerId(request.worker_id), decode_load(request.load), request.draining
        self._event_loop.decide(
            lambda: self._controller.heartbeat(worker_id, request.epoch, load, draining=draining)
        )
        membership = self._controller.membership
        known = request.members_version == membership.version
        answer = encode_peers(membership.version, () if known else membership.kv_sources(worker_id))
        if order := membership.order_of(worker_id):
            answer.drain.CopyFrom(encode_order(order))
        answer.heartbeat_seconds = self._live.settings.heartbeat_seconds
        answer.log_level = self._live.settings.log_level
        return answer

    def deregister(self, request: router_pb2.DeregisterRequest) -> router_pb2.DeregisterResponse:
        self._event_loop.decide(
            lambda: self._controller.deregister(WorkerId(request.worker_id), request.epoch)
        )
        _log.info("worker %s deregistered", request.worker_id)
        return router_pb2.DeregisterResponse()
