"""llmserve.v1.Router: each call goes to whom it concerns."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.router.controller import Controller
from llmserve.router.decider import Decider
from llmserve.router.in_force import InForce
from llmserve.router.kv_watch import KvWatch
from llmserve.router.mandate import Mandate
from llmserve.router.operator_calls import OperatorCalls
from llmserve.router.operators import Operators
from llmserve.router.queue_spans import QueueSpans
from llmserve.router.recorder import Recorder
from llmserve.router.session_calls import SessionCalls
from llmserve.router.settings import RouterSettings
from llmserve.router.worker_calls import WorkerCalls
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
        recorder: Recorder,
        kv_watch: KvWatch,
        mandate: Mandate,
        manifest: Manifest | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """manifest: what a reload is compared with; without one there is none."""
        self._mandate = mandate
        spans = QueueSpans(tracer)
        self._decider = decider = Decider(controller, clock, recorder, kv_watch, mandate, spans)
        in_force = self._in_force = InForce(controller, decider, settings)
        operators = Operators(manifest, decider.streams.senders, in_force.obey)
        sign_of_life = settings.terms.sign_of_life_seconds
        self._sessions = SessionCalls(controller, decider, mandate, operators, sign_of_life)
        self._workers = WorkerCalls(controller, decider, in_force)
        self._operators = OperatorCalls(controller, clock, kv_watch, mandate, operators, in_force)

    @property
    def log_level(self) -> str:
        """As RouterSettings.log_level, now."""
        return self._in_force.settings.log_level

    async def run(self) -> None:
        """Does what is due, for ever. Errors: NotLeader, when the mandate has ended."""
        await self._decider.run()

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
        promised = self._mandate.promise(request.leader, request.epoch, request.seconds)
        return router_pb2.PromiseResponse(promised=promised)
