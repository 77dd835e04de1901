"""gRPC `llmserve.v1.Worker` over any engine.

A Session multiplexes the requests of one apiserver. An error of a request is sent in a
delta of that request (FINISH_REASON_ERROR); it never breaks the stream.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc.aio

from llmserve.core.errors import EngineDead, InvalidRequest, LLMServeError, TransferError, WorkerDraining
from llmserve.core.ids import RequestId
from llmserve.core.kv_params import PullParams
from llmserve.core.logs import RequestNames, named
from llmserve.core.request import FinishReason
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.worker import WorkerMetrics
from llmserve.rpc.codec import decode_params, decode_request, encode_load, encode_outputs
from llmserve.rpc.gen.llmserve.v1 import worker_pb2, worker_pb2_grpc
from llmserve.rpc.server import traceparent_of
from llmserve.tracing import words
from llmserve.tracing.base import ending, trace_id_of
from llmserve.workers.adapters.legs import EngineLegs
from llmserve.workers.leg_spans import LegSpans
from llmserve.workers.profiles import Profiles
from llmserve.workers.sessions import WorkerSession, WorkerSessions
from llmserve.workers.status import WorkerStatus

_log = logging.getLogger(__name__)

_RELEASE_SECONDS = 3.0

ReleaseTicket = Callable[[PullParams, float], Awaitable[bool]]


class LeaseReleaser:
    """release_lease: engines.kv_transfer's; False when the lease had ended already."""

    def __init__(self, release_lease: ReleaseTicket, tasks: TaskOwner) -> None:
        self._release_lease = release_lease
        self._tasks = tasks

    async def release(self, params: Mapping[str, Any]) -> bool:
        """Errors: InvalidRequest (no ticket), TransferError, DeadlineExceeded."""
        try:
            ticket = PullParams.from_params(params)
        except TransferError as error:
            raise InvalidRequest(error.message) from error
        return await self._release_lease(ticket, _RELEASE_SECONDS)

    def release_soon(self, tickets: Iterable[Mapping[str, Any]]) -> None:
        for params in tickets:
            self._tasks.spawn("release", self._release_quietly(params))

    async def _release_quietly(self, params: Mapping[str, Any]) -> None:
        lease_id = params.get("lease_id")
        try:
            released = await self.release(params)
        except LLMServeError as error:
            _log.warning("releasing a lease failed, it will expire: lease=%s: %s", lease_id, error.message)
        else:
            _log.info("lease given back: lease=%s still_open=%s", lease_id, released)


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """`pump` runs as one task for as long as the service does."""

    def __init__(
        self,
        legs: EngineLegs,
        sessions: WorkerSessions,
        status: WorkerStatus,
        releaser: LeaseReleaser,
        tasks: TaskOwner,
        metrics: WorkerMetrics,
        spans: LegSpans,
    ) -> None:
        self._legs = legs
        self._sessions = sessions
        self._status = status
        self._releaser = releaser
        self._tasks = tasks
        self._metrics = metrics
        self._spans = spans
        self._profiles = Profiles(legs.engine)
        self._admitting = True

    # -- for the worker's life

    async def pump(self) -> None:
        """Passes the engine's outputs on. Errors: EngineDead, after every request got it."""
        try:
            while True:
                outputs = await self._legs.engine.next_outputs()
                if self._legs.open_legs:
                    outputs = self._legs.outputs(outputs)
                self._metrics.record_outputs(outputs)
                if self._spans.open_legs:
                    self._spans.outputs(outputs)
                if unclaimed := self._sessions.dispatch(outputs):
                    self._releaser.release_soon(unclaimed)
                if not self._sessions.running:
                    self._status.pauses(lambda: self._sessions.running)
        except EngineDead as error:
            self.engine_lost(error)
            raise

    def engine_lost(self, error: EngineDead) -> None:
        """Ends every request with the error: it goes on elsewhere. Idempotent."""
        self._admitting = False
        running = self._sessions.give_up(error)
        self._legs.lost()
        for request_id in running:
            self._spans.failed(request_id, error)
        _log.error("engine lost: %s requests end: %s", len(running), error.message)

    def stop_admitting(self) -> None:
        self._admitting = False

    @property
    def running_requests(self) -> int:
        return len(self._sessions.running)

    async def give_up(self) -> None:
        """Ends what still runs, and the streams."""
        running = self._sessions.give_up(WorkerDraining("the worker is stopping"))
        if running:
            _log.warning("stopping: %s requests are given up", len(running))
            self._spans.aborted(running, "the worker is stopping")
            await self._legs.abort(running)
            self._metrics.record_end(FinishReason.ABORT, len(running))

    # -- gRPC

    async def Session(  # noqa: N802 - the name of the RPC
        self, request_iterator: AsyncIterator[worker_pb2.WorkerSessionRequests], context: Any
    ) -> AsyncIterator[worker_pb2.WorkerSessionResponse]:
        session = self._sessions.open()
        self._metrics.sessions.set(len(self._sessions))
        _log.info("session started: peer=%s", context.peer())
        reader = self._tasks.spawn("session", self._read(session, request_iterator))
        # By callback: a cancelled stream may leave this generator suspended where it yielded.
        context.add_done_callback(lambda _: self._tasks.spawn("leave", self._leave(session, reader)))
        while outputs := await session.outbox.take():
            yield encode_outputs(outputs)
            self._metrics.messages_total.inc()

    async def ReleaseLease(  # noqa: N802
        self, request: worker_pb2.ReleaseLeaseRequest, context: Any
    ) -> worker_pb2.ReleaseLeaseResponse:
        params = decode_params(request.kv_transfer_params)
        if params is None:
            raise InvalidRequest("kv_transfer_params is empty")
        with ending(self._spans.release(traceparent_of(context.invocation_metadata()))) as span:
            released = await self._releaser.release(params)
            span.set_attributes({words.RELEASED: released})
        return worker_pb2.ReleaseLeaseResponse(released=released)

    async def GetWorkerStatus(  # noqa: N802
        self, request: worker_pb2.GetWorkerStatusRequest, context: Any
    ) -> worker_pb2.GetWorkerStatusResponse:
        load = await self._status.load()
        return worker_pb2.GetWorkerStatusResponse(info=self._status.info, load=encode_load(load))

    async def Profile(  # noqa: N802
        self, request: worker_pb2.ProfileRequest, context: Any
    ) -> AsyncIterator[worker_pb2.ProfilePiece]:
        async for piece in self._profiles.record(request.seconds):
            yield piece

    # -- a session

    async def _read(
        self, session: WorkerSession, requests: AsyncIterator[worker_pb2.WorkerSessionRequests]
    ) -> None:
        try:
            with suppress(grpc.aio.UsageError):  # the stream ended between two reads
                async for batch in requests:
                    for message in batch.messages:
                        await self._receive(session, message)
            self._sessions.drain(session)
        except Exception:  # nobody foresaw it: the apiserver has to know that nobody reads any more
            session.outbox.close()
            raise

    async def _receive(self, session: WorkerSession, message: worker_pb2.WorkerSessionRequest) -> None:
        match message.WhichOneof("message"):
            case "generate":
                with named(_names(message.generate)):
                    await self._generate(session, message.generate)
            case "abort":
                await self._abort(session, message.abort.request_ids)

    async def _generate(self, session: WorkerSession, message: worker_pb2.GenerateRequest) -> None:
        request_id = RequestId(message.request_id)
        try:
            if not self._admitting:
                raise WorkerDraining("the worker is stopping")
            request = decode_request(message)
            self._sessions.claim(session, request_id)
        except LLMServeError as error:
            self._sessions.refuse(session, request_id, error)
            return
        self._spans.began(request)
        await self._legs.add(request, partial(self._failed, session, request_id))

    def _failed(self, session: WorkerSession, request_id: RequestId, error: LLMServeError) -> None:
        """The engine did not get a request, or did not take it."""
        self._spans.failed(request_id, error)
        if self._sessions.owns(session, request_id):
            self._sessions.withdraw(session, request_id)
            self._sessions.refuse(session, request_id, error)

    async def _abort(self, session: WorkerSession, request_ids: Sequence[str]) -> None:
        """Ids that are unknown, or belong to another stream, are ignored."""
        own = [RequestId(key) for key in request_ids if self._sessions.owns(session, RequestId(key))]
        if not own:
            return
        for request_id in own:
            self._releaser.release_soon(self._sessions.withdraw(session, request_id))
        self._spans.aborted(own, "the apiserver does not want it any more")
        self._metrics.record_end(FinishReason.ABORT, len(own))
        await self._legs.abort(own)

    async def _leave(self, session: WorkerSession, reader: asyncio.Task[None]) -> None:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        left = self._sessions.close(session)
        self._spans.aborted(left.aborts, "the apiserver is gone")
        self._metrics.sessions.set(len(self._sessions))
        _log.info("session ended: aborted=%s leases_released=%s", len(left.aborts), len(left.releases))
        self._releaser.release_soon(left.releases)
        if left.aborts:
            self._metrics.record_end(FinishReason.ABORT, len(left.aborts))
            await self._legs.abort(left.aborts)


def _names(message: worker_pb2.GenerateRequest) -> RequestNames:
    return RequestNames(message.request_id, trace_id_of(message.traceparent))
