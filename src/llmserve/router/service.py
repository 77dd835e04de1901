"""llmserve.v1.Router: events in, decisions out to the apiservers.

Every event is decided by one synchronous call into the controller, on the one loop; the task `run`
adds the passing of time, and sleeps until something is due.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio

from llmserve.config.changes import Changes
from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, LLMServeError, NotLeader
from llmserve.core.ids import ApiserverId, RequestId, WorkerId
from llmserve.core.tasks import TaskOwner
from llmserve.router import session as sessions
from llmserve.router.controller import Controller
from llmserve.router.hello import read_hello
from llmserve.router.kv_watch import KvWatch
from llmserve.router.mandate import Mandate
from llmserve.router.messages import Effect, Placed, Prefetch, Refused
from llmserve.router.operators import Operators
from llmserve.router.outbox import Outbox
from llmserve.router.polls import Send
from llmserve.router.proof import ProofState
from llmserve.router.recorder import Recorder
from llmserve.router.settings import RouterSettings
from llmserve.router.shares import encode_budgets, encode_tenants
from llmserve.router.wire import (
    PlacementEncoder,
    decode_admit,
    decode_held,
    decode_order,
    decode_worker,
    encode_cluster,
    encode_index,
    encode_order,
    encode_peers,
    encode_refused,
    encode_status,
)
from llmserve.rpc.codec import decode_load, decode_outcome
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.role import set_log_level

_log = logging.getLogger(__name__)

# Loop timers are good to a millisecond: waking just before the time would mean to spin until it.
_TIMER_SLACK_SECONDS = 0.001

_Requests = AsyncIterator[router_pb2.RouterSessionRequest]
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(eq=False, slots=True)
class _Stream:
    """An open session and the way to answer it."""

    session: sessions.Session
    outbox: Outbox


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
    ) -> None:
        """manifest: what a reload is compared with; without one there is none."""
        self._mandate = mandate
        self._controller = controller
        self._settings = settings
        self._clock = clock
        self._recorder = recorder
        self._kv_watch = kv_watch
        self._told_proof = ProofState.UNPROVEN
        self._encoder = PlacementEncoder()
        self._streams: dict[ApiserverId, _Stream] = {}
        self._readers = TaskOwner("router")
        self._told_version = controller.cluster_version
        self._told_workers: set[tuple[WorkerId, int]] = set()
        self._sleeping_until = 0.0
        self._wake = asyncio.Event()
        self._operators = Operators(manifest, self._apiservers, self._obey)
        self._log_level = ""  # that workers are told, once a reload has changed it

    async def run(self) -> None:
        """Does what is due, for ever. Errors: NotLeader, when the mandate has ended."""
        while True:
            self._decide(self._controller.tick)
            self._warn()
            wake = self._controller.next_wake()
            self._sleeping_until = float("inf") if wake is None else wake
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sleep_seconds(wake)):
                    await self._wake.wait()

    async def aclose(self) -> None:
        """Ends the sessions; apiservers keep what runs and come back to the next router."""
        for stream in self._streams.values():
            stream.outbox.close()
        await self._readers.aclose()

    # -- apiservers

    async def Session(  # noqa: N802 - the name in the proto
        self, request_iterator: _Requests, context: _Context
    ) -> AsyncIterator[router_pb2.RouterSessionResponse]:
        stream = self._open(await read_hello(request_iterator))
        # The handler may be left at a yield when the peer is gone: gRPC tells this way, too.
        context.add_done_callback(lambda _: self._close(stream))  # type: ignore[arg-type]  # stub's own type
        name = f"session-{stream.session.apiserver_id}"
        reader = self._readers.spawn(name, self._read(request_iterator, stream))
        try:
            async for message in stream.outbox:
                self._mandate.check()  # what was decided in time is not to be said too late
                yield message
        finally:
            reader.cancel()
            self._close(stream)

    def _open(self, hello: router_pb2.Hello) -> _Stream:
        self._mandate.check()
        apiserver_id = ApiserverId(hello.apiserver_id)
        held = [decode_held(message) for message in hello.held]
        older = self._streams.pop(apiserver_id, None)
        session, effects = self._controller.open_session(apiserver_id, held)
        outbox = Outbox(self._settings.terms.sign_of_life_seconds)
        stream = self._streams[apiserver_id] = _Stream(session, outbox)
        stream.outbox.send_state(self._cluster())
        if older:
            self._operators.gone(apiserver_id)
            older.outbox.close()
        self._operators.came(stream.outbox.send)
        _log.info("apiserver %s: session started, holds %d requests", apiserver_id, len(held))
        self._apply(effects)
        return stream

    def _close(self, stream: _Stream) -> None:
        """Idempotent."""
        apiserver_id = stream.session.apiserver_id
        stream.outbox.close()
        if self._streams.get(apiserver_id) is stream:
            del self._streams[apiserver_id]
            self._operators.gone(apiserver_id)
            given_back = len(stream.session.tickets)
            _log.info("apiserver %s: session ended, %d requests given back", apiserver_id, given_back)
        with suppress(NotLeader):  # the next leader counts anew
            self._decide(lambda: self._controller.close_session(stream.session))

    async def _read(self, requests: _Requests, stream: _Stream) -> None:
        """Ends the stream when the apiserver does, or when it says what it must not."""
        error: LLMServeError | None = None
        try:
            async for message in requests:
                self._decide(lambda message=message: self._receive(stream.session, message))  # type: ignore[misc]
        except LLMServeError as wrong:
            error = wrong
        finally:
            stream.outbox.close(error)

    def _receive(self, session: sessions.Session, message: router_pb2.RouterSessionRequest) -> list[Effect]:
        match message.WhichOneof("message"):
            case "admit":
                return self._controller.admit(session, decode_admit(message.admit))
            case "first_token":
                return self._controller.first_token(session, RequestId(message.first_token.request_id))
            case "progress":
                progress = message.progress
                return self._controller.progress(
                    session, RequestId(progress.request_id), progress.output_tokens
                )
            case "done":
                done = message.done
                outcome = decode_outcome(done.outcome)
                cached = done.cached_tokens if done.HasField("cached_tokens") else None
                name = RequestId(done.request_id)
                return self._controller.done(session, name, outcome, done.output_tokens, cached)
            case "worker_failed":
                failed = message.worker_failed
                _log.warning("worker %s failed: %s", failed.worker_id, failed.reason)
                return self._controller.worker_failed(
                    WorkerId(failed.worker_id), failed.epoch, failed.reason, stalled=failed.stalled
                )
            case "answer":
                self._operators.answered(session.apiserver_id, message.answer)
                return []
            case other:
                raise InvalidRequest(f"a session message cannot be {other or 'empty'} here")

    # -- workers

    async def Register(  # noqa: N802
        self, request: router_pb2.RegisterRequest, context: _Context
    ) -> router_pb2.RegisterResponse:
        spec = decode_worker(request.worker)
        try:
            self._decide(lambda: self._controller.register(spec))
        except InvalidRequest as error:
            _log.warning("worker %s refused: %s", spec.worker_id, error.message)
            raise
        return router_pb2.RegisterResponse(
            heartbeat_seconds=self._settings.heartbeat_seconds, expiry_seconds=self._settings.expiry_seconds
        )

    async def Heartbeat(  # noqa: N802
        self, request: router_pb2.HeartbeatRequest, context: _Context
    ) -> router_pb2.HeartbeatResponse:
        worker_id, load = WorkerId(request.worker_id), decode_load(request.load)
        draining = request.draining
        self._decide(lambda: self._controller.heartbeat(worker_id, request.epoch, load, draining=draining))
        membership = self._controller.membership
        known = request.members_version == membership.version
        answer = encode_peers(membership.version, () if known else membership.kv_sources(worker_id))
        if order := membership.order_of(worker_id):
            answer.drain.CopyFrom(encode_order(order))
        answer.heartbeat_seconds, answer.log_level = self._settings.heartbeat_seconds, self._log_level
        return answer

    async def Deregister(  # noqa: N802
        self, request: router_pb2.DeregisterRequest, context: _Context
    ) -> router_pb2.DeregisterResponse:
        self._decide(lambda: self._controller.deregister(WorkerId(request.worker_id), request.epoch))
        _log.info("worker %s deregistered", request.worker_id)
        return router_pb2.DeregisterResponse()

    # -- operators

    async def Drain(  # noqa: N802
        self, request: router_pb2.DrainRequest, context: _Context
    ) -> router_pb2.DrainResponse:
        self._mandate.check()  # a standby knows no worker: its "no such worker" would be wrong
        order = decode_order(request.order, self._settings.drain_timeout_seconds)
        member, others = self._controller.drain(WorkerId(request.worker_id), order)
        _log.info("worker %s: %s", request.worker_id, order)
        return router_pb2.DrainResponse(
            running_requests=member.seats.placed_requests,
            others=others,
            timeout_seconds=order.timeout_seconds,
        )

    async def GetClusterStatus(  # noqa: N802
        self, request: router_pb2.GetClusterStatusRequest, context: _Context
    ) -> router_pb2.GetClusterStatusResponse:
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

    async def Reload(  # noqa: N802
        self, request: router_pb2.ReloadRequest, context: _Context
    ) -> router_pb2.ReloadResponse:
        self._mandate.check()
        return await self._operators.reload(request)

    async def Explain(  # noqa: N802
        self, request: router_pb2.ExplainRequest, context: _Context
    ) -> router_pb2.ExplainResponse:
        self._mandate.check()
        return await self._operators.explain(request)

    def _apiservers(self) -> dict[ApiserverId, Send]:
        return {name: stream.outbox.send for name, stream in self._streams.items()}

    def _obey(self, manifest: Manifest, changes: Changes) -> None:
        settings = self._settings = replace(RouterSettings.of_manifest(manifest), terms=self._settings.terms)
        self._decide(
            lambda: self._controller.reconfigure(settings.admission, settings.policy, settings.expiry_seconds)
        )
        if any(change.path == "observability.log_level" for change in changes.live):
            self._log_level = manifest.observability.log_level
            set_log_level(self._log_level)

    # -- other routers

    async def Promise(  # noqa: N802
        self, request: router_pb2.PromiseRequest, context: _Context
    ) -> router_pb2.PromiseResponse:
        promised = self._mandate.promise(request.leader, request.epoch, request.seconds)
        return router_pb2.PromiseResponse(promised=promised)

    # -- from decisions to deeds

    def _decide(self, event: Callable[[], list[Effect]]) -> None:
        """Errors: NotLeader, and nothing happens."""
        self._mandate.check()
        started = time.perf_counter()
        effects = event()
        self._recorder.decided(time.perf_counter() - started)
        self._apply(effects)

    def _apply(self, effects: list[Effect]) -> None:
        self._tell_cluster()
        for effect in effects:
            self._recorder.record(effect)
            if isinstance(effect, Placed):
                self._send(effect.session, self._encoder.placed(effect))
            elif isinstance(effect, Refused):
                self._send(effect.session, encode_refused(effect))
            elif isinstance(effect, Prefetch):
                self._kv_watch.prefetch(effect)
        wake = self._controller.next_wake()
        if wake is not None and wake < self._sleeping_until:
            self._wake.set()

    def _warn(self) -> None:
        """Once, when what is cached turns out not to be found, and when it is found at last."""
        proof = self._controller.prefixes.proof
        if proof.state is self._told_proof:
            return
        self._told_proof = proof.state
        if proof.problem:
            _log.warning("requests are not routed to what is cached: %s", proof.problem)
        else:
            _log.info("prefix index: %s", proof.state)

    def _send(self, session: sessions.Session, message: router_pb2.RouterSessionResponse) -> None:
        stream = self._streams.get(session.apiserver_id)
        if stream and stream.session is session:
            stream.outbox.send(message)

    def _tell_cluster(self) -> None:
        if self._told_version == self._controller.cluster_version:
            return
        self._told_version = self._controller.cluster_version
        self._encoder.forget_all()
        self._log_workers()
        state = self._cluster()
        for stream in self._streams.values():
            stream.outbox.send_state(state)

    def _cluster(self) -> router_pb2.RouterSessionResponse:
        return encode_cluster(self._controller.membership, self._mandate.standing().epoch)

    def _log_workers(self) -> None:
        specs = {m.spec.worker_id: m.spec for m in self._controller.membership if m.registered}
        for spec in specs.values():
            if (spec.worker_id, spec.epoch) not in self._told_workers:
                _log.info("worker %s is in use: %s at %s", spec.worker_id, spec.role, spec.address)
        for worker_id, _ in self._told_workers:
            if worker_id not in specs:
                _log.warning("worker %s is gone", worker_id)
        self._told_workers = {(spec.worker_id, spec.epoch) for spec in specs.values()}

    def _sleep_seconds(self, wake: float | None) -> float | None:
        return None if wake is None else max(0.0, wake - self._clock.now()) + _TIMER_SLACK_SECONDS
