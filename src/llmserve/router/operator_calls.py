"""What operators ask of the router."""

import logging

from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.router.controller import Controller
from llmserve.router.in_force import InForce
from llmserve.router.kv_watch import KvWatch
from llmserve.router.mandate import Mandate
from llmserve.router.operators import Operators
from llmserve.router.shares import encode_budgets, encode_tenants
from llmserve.router.wire import decode_order, encode_index, encode_status
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_log = logging.getLogger(__name__)


class OperatorCalls:
    """Errors of each but the status: NotLeader. A standby knows no worker and no apiserver: whatever else it
    said would be wrong."""

    def __init__(
        self,
        controller: Controller,
        clock: Clock,
        kv_watch: KvWatch,
        mandate: Mandate,
        operators: Operators,
        in_force: InForce,
    ) -> None:
        self._controller, self._clock, self._kv_watch = controller, clock, kv_watch
        self._mandate, self._operators, self._in_force = mandate, operators, in_force

    def drain(self, request: router_pb2.DrainRequest) -> router_pb2.DrainResponse:
        """Errors: NotFound."""
        self._mandate.check()
        order = decode_order(request.order, self._in_force.settings.drain_timeout_seconds)
        member, others = self._controller.drain(WorkerId(request.worker_id), order)
        _log.info("worker %s: %s", request.worker_id, order)
        return router_pb2.DrainResponse(
            running_requests=member.seats.placed_requests,
            others=others,
            timeout_seconds=order.timeout_seconds,
        )

    def status(self) -> router_pb2.GetClusterStatusResponse:
        now, slow, standing = self._clock.now(), self._controller.slow.workers(), self._mandate.standing()
        stats = self._controller.scheduler_stats()
        return router_pb2.GetClusterStatusResponse(
            workers=[encode_status(member, now, slow) for member in self._controller.membership],
            queued_requests=self._controller.waiting_requests,
            running_requests=self._controller.running_requests,
            apiservers=self._controller.apiservers,
            prefix_index=encode_index(self._controller.prefixes, self._kv_watch.away()),
            leads=standing.leads,
            leader=standing.leader,
            epoch=standing.epoch,
            state_trouble=standing.trouble,
            tenants=encode_tenants(stats),
            budgets=encode_budgets(stats),
            queue_limit_requests=stats.queue_limit_requests,
        )

    async def reload(self, request: router_pb2.ReloadRequest) -> router_pb2.ReloadResponse:
        """Errors: as Operators.reload."""
        self._mandate.check()
        return await self._operators.reload(request)

    async def explain(self, request: router_pb2.ExplainRequest) -> router_pb2.ExplainResponse:
        """Errors: NotFound."""
        self._mandate.check()
        return await self._operators.explain(request)
