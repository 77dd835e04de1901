"""What workers tell the router, and are told."""

import logging

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import WorkerId
from llmserve.router.controller import Controller
from llmserve.router.decider import Decider
from llmserve.router.in_force import InForce
from llmserve.router.wire import decode_worker, encode_order, encode_peers
from llmserve.rpc.codec import decode_load
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_log = logging.getLogger(__name__)


class WorkerCalls:
    """Errors of each: NotLeader."""

    def __init__(self, controller: Controller, decider: Decider, in_force: InForce) -> None:
        self._controller, self._decider, self._in_force = controller, decider, in_force

    def register(self, request: router_pb2.RegisterRequest) -> router_pb2.RegisterResponse:
        """Errors: InvalidRequest, as Membership.register."""
        spec, settings = decode_worker(request.worker), self._in_force.settings
        try:
            self._decider.decide(lambda: self._controller.register(spec))
        except InvalidRequest as error:
            _log.warning("worker %s refused: %s", spec.worker_id, error.message)
            raise
        return router_pb2.RegisterResponse(
            heartbeat_seconds=settings.heartbeat_seconds, expiry_seconds=settings.expiry_seconds
        )

    def heartbeat(self, request: router_pb2.HeartbeatRequest) -> router_pb2.HeartbeatResponse:
        """Errors: NotFound, as Membership.heartbeat."""
        worker_id, load, draining = WorkerId(request.worker_id), decode_load(request.load), request.draining
        self._decider.decide(
            lambda: self._controller.heartbeat(worker_id, request.epoch, load, draining=draining)
        )
        membership = self._controller.membership
        known = request.members_version == membership.version
        answer = encode_peers(membership.version, () if known else membership.kv_sources(worker_id))
        if order := membership.order_of(worker_id):
            answer.drain.CopyFrom(encode_order(order))
        answer.heartbeat_seconds = self._in_force.settings.heartbeat_seconds
        answer.log_level = self._in_force.settings.log_level
        return answer

    def deregister(self, request: router_pb2.DeregisterRequest) -> router_pb2.DeregisterResponse:
        self._decider.decide(lambda: self._controller.deregister(WorkerId(request.worker_id), request.epoch))
        _log.info("worker %s deregistered", request.worker_id)
        return router_pb2.DeregisterResponse()
