"""The links to workers: one stream to each incarnation of a worker, shared by all requests that run there.

A link connects when it is made and dies with its first break: every leg on it then fails with WorkerLost, and
the next request makes a new link. Outgoing messages are queued without waiting (requests are bounded by the
router's admission). Incoming ones go straight to their legs, which hold at most one request's tokens. A
stream waits for as long as its worker answers keepalive pings.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc.aio

from llmserve.core.errors import InvalidRequest, LLMServeError, WorkerLost, WorkerStalled
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, EngineRequest, FinishReason
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel, trace_metadata
from llmserve.rpc.codec import decode_output, encode_params, encode_request
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import worker_pb2, worker_pb2_grpc
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.rpc.outbox import Outbox
from llmserve.rpc.status import error_named, from_grpc

_log = logging.getLogger(__name__)

_RELEASE_TIMEOUT_SECONDS = 5.0


class LegStream:
    """The outputs of one request on one worker, in order. Its user takes them once, with `pass_to`, and
    closes it in any case (idempotent), which aborts the request on the worker if it has not ended there.
    Made in a running loop.

    first_seconds: deadline of the first output. next_seconds: of each later one, from the one before it."""

    def __init__(
        self,
        request_id: RequestId,
        worker_id: str,
        first_seconds: float,
        next_seconds: float,
        on_close: Callable[["LegStream", bool], None],
    ) -> None:
        self.request_id, self._worker_id, self._on_close = request_id, worker_id, on_close
        self._seconds, self._next_seconds = first_seconds, next_seconds
        self._waiting: list[EngineOutput | LLMServeError] = []  # that nobody has taken
        self._take: Callable[[EngineOutput], bool] | None = None
        self._has_output = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._ended = self._closed = False
        self._due = self._loop.time() + first_seconds
        self._alarm = self._loop.call_at(self._due, self._check)

    def deliver(self, event: EngineOutput | LLMServeError) -> None:
        """Adds an output, or the error that ends the leg. The reader of the worker's stream calls it. What
        takes the outputs runs within, so that no task wakes for a token."""
        self._seconds = self._next_seconds
        self._due = self._loop.time() + self._seconds
        if self._take is None or self._over.done():
            self._waiting.append(event)
            self._has_output.set()
            return
        try:
            if isinstance(event, LLMServeError):
                raise event
            if event.finish_reason is not None:
                self._ended = True
                _raise_if_failed(event)
            if self._take(event) or self._ended:
                self._over.set_result(None)
        except Exception as error:
            self._over.set_exception(error)

    async def pass_to(self, take: Callable[[EngineOutput], bool]) -> None:
        """Gives each output to `take`, from the first on, until it returns True or the leg has ended.
        Errors: WorkerLost; WorkerStalled after a deadline; what the worker says of this request; what `take`
        raises."""
        waiting, self._waiting, self._take = self._waiting, [], take
        for event in waiting:
            self.deliver(event)
        await self._over

    async def has_output(self) -> None:
        """Returns when an output waits for `pass_to`. Errors: those of `pass_to`, if there is to be none."""
        await self._has_output.wait()
        first = self._waiting[0]
        if isinstance(first, LLMServeError):
            raise first
        _raise_if_failed(first)

    def _check(self) -> None:
        """Runs when the deadline that was set last is over, unless later outputs have moved it."""
        if self._loop.time() < self._due:
            self._alarm = self._loop.call_at(self._due, self._check)
        else:
            late = f"the worker {self._worker_id} gave no output within {self._seconds:g} s"
            self.deliver(WorkerStalled(late))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._alarm.cancel()
            self._over.cancel()
            self._on_close(self, not self._ended)

    def untaken(self) -> Iterator[EngineOutput]:
        """Yields the outputs that came and were not taken."""
        return (event for event in self._waiting if isinstance(event, EngineOutput))


def _raise_if_failed(output: EngineOutput) -> None:
    """Raises the error that ended a leg, if one did. The worker names its class before a colon. An abort that
    nobody here asked for means that the worker stops and gives up its requests."""
    if output.finish_reason is FinishReason.ABORT:
        raise WorkerLost("the worker gave the request up")
    if output.finish_reason is FinishReason.ERROR:
        name, colon, message = output.error.partition(": ")
        error = error_named(name, message)
        if colon and type(error).__name__ == name:
            raise error
        raise LLMServeError(output.error or "the worker could not go on with the request")


class WorkerLink:
    def __init__(
        self,
        info: WorkerInfo,
        owner: TaskOwner,
        on_broken: Callable[["WorkerLink"], None],
        credentials: Credentials,
    ) -> None:
        self.info = info
        self._on_broken = on_broken
        self._channel = open_channel(info.address, credentials, CallerRole.WORKER)
        self._stub = worker_pb2_grpc.WorkerStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._outbox: Outbox[worker_pb2.WorkerSessionRequest] = Outbox()
        self._legs: dict[str, LegStream] = {}
        self._broken: WorkerLost | None = None
        self._owner = owner
        self._reader = owner.spawn(f"link {info.worker_id}", self._run())

    def __len__(self) -> int:
        return len(self._legs)

    def open(self, request: EngineRequest, first_seconds: float, next_seconds: float) -> LegStream:
        """Hands the request to the worker. Errors: WorkerLost when the link is broken already."""
        if self._broken is not None:
            raise self._broken
        if request.request_id in self._legs:
            raise InvalidRequest(f"request {request.request_id} runs on {self.info.worker_id} already")
        worker_id, message = self.info.worker_id, encode_request(request)
        leg = LegStream(request.request_id, worker_id, first_seconds, next_seconds, self._close_leg)
        self._legs[request.request_id] = leg
        self._outbox.put(message)
        return leg

    def _close_leg(self, leg: LegStream, running: bool) -> None:
        self._legs.pop(leg.request_id, None)
        if running and self._broken is None:
            abort = worker_pb2.AbortRequest(request_ids=[leg.request_id])
            self._outbox.put(worker_pb2.WorkerSessionRequest(abort=abort))
        for output in leg.untaken():
            self._claim(encode_params(output.kv_transfer_params))

    async def release(self, kv_transfer_params: bytes, traceparent: str = "") -> bool:
        """Gives a lease back; false when it had ended already. Errors: LLMServeError."""
        request = worker_pb2.ReleaseLeaseRequest(kv_transfer_params=kv_transfer_params)
        try:
            answer = await self._stub.ReleaseLease(
                request, timeout=_RELEASE_TIMEOUT_SECONDS, metadata=trace_metadata(traceparent)
            )
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error
        return bool(answer.released)

    async def _run(self) -> None:
        reason = "it closed the stream"
        try:
            async for response in self._stub.Session(self._requests()):
                for delta in response.deltas:
                    if (leg := self._legs.get(delta.request_id)) is not None:
                        leg.deliver(decode_output(delta))
                    else:
                        self._claim(delta.kv_transfer_params)
        except grpc.aio.AioRpcError as error:
            reason = from_grpc(error).message
        finally:
            self._outbox.close()
            self._break(reason)
            await self._channel.close(None)

    async def _requests(self) -> AsyncIterator[worker_pb2.WorkerSessionRequests]:
        while messages := await self._outbox.take():
            yield worker_pb2.WorkerSessionRequests(messages=messages)

    def _claim(self, kv_transfer_params: bytes) -> None:
        """Releases the lease of a prefill that ended while its request was given up. Nobody else knows of
        it."""
        if kv_transfer_params:
            self._owner.spawn("release", self._release_unclaimed(kv_transfer_params))

    async def _release_unclaimed(self, kv_transfer_params: bytes) -> None:
        try:
            await self.release(kv_transfer_params)
        except LLMServeError as error:
            _log.warning("lease of an aborted request not released, it will expire: %s", error)

    def _break(self, reason: str) -> None:
        self._broken = WorkerLost(f"lost the worker {self.info.worker_id}: {reason}")
        self._on_broken(self)
        for leg in self._legs.values():
            leg.deliver(self._broken)

    async def aclose(self) -> None:
        """Closes the stream: the worker aborts what still runs here. Idempotent."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close(None)


_Incarnation = tuple[str, int]  # worker_id, epoch


class WorkerLinks:
    """The links to all workers: made on first use, dropped when broken or no longer needed."""

    def __init__(self, metrics: ApiserverMetrics, credentials: Credentials = NO_CREDENTIALS) -> None:
        self._metrics, self._credentials = metrics, credentials
        self._owner = TaskOwner("worker-links")
        self._links: dict[_Incarnation, WorkerLink] = {}
        self._members: frozenset[_Incarnation] = frozenset()

    def __len__(self) -> int:
        return len(self._links)

    def open(
        self, worker: WorkerInfo, request: EngineRequest, first_seconds: float, next_seconds: float
    ) -> LegStream:
        """Starts a request on a worker, with the deadlines of a LegStream. Errors: WorkerLost."""
        return self._link(worker).open(request, first_seconds, next_seconds)

    def release(self, worker: WorkerInfo, pull_params: Mapping[str, Any], traceparent: str = "") -> None:
        """Gives a lease back in the background, since the caller may be in the middle of being cancelled."""
        self._owner.spawn("release", self._release(worker, pull_params, traceparent))

    async def _release(self, worker: WorkerInfo, pull_params: Mapping[str, Any], traceparent: str) -> None:
        try:
            released = await self._link(worker).release(encode_params(pull_params), traceparent)
            self._metrics.lease_releases_total.labels("released" if released else "ended").inc()
        except LLMServeError as error:
            self._metrics.lease_releases_total.labels("failed").inc()
            _log.warning("lease on %s not released, it will expire: %s", worker.worker_id, error)

    def retain(self, members: Sequence[WorkerInfo]) -> None:
        """Sets who is in the cluster. Idle links to others are closed. Busy ones may finish: a worker that
        leaves in order runs its requests to their end, and a dead one breaks its link."""
        self._members = frozenset(map(_incarnation, members))
        for key, link in list(self._links.items()):
            if key not in self._members and len(link) == 0:
                del self._links[key]
                self._owner.spawn("close link", link.aclose())
        self._metrics.worker_links.set(len(self._links))

    def _link(self, worker: WorkerInfo) -> WorkerLink:
        key = _incarnation(worker)
        if key not in self._links:
            self._links[key] = WorkerLink(worker, self._owner, self._forget, self._credentials)
            self._metrics.worker_links.set(len(self._links))
        return self._links[key]

    def _forget(self, link: WorkerLink) -> None:
        key = _incarnation(link.info)
        if self._links.get(key) is link:
            del self._links[key]
        self._metrics.worker_links.set(len(self._links))

    async def aclose(self) -> None:
        """Releases under way get no more time: their leases expire. Idempotent."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.aclose()
        await self._owner.aclose()


def _incarnation(worker: WorkerInfo) -> _Incarnation:
    return (worker.worker_id, worker.epoch)
