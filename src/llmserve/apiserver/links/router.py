"""The one stream to the router: admissions out, placements in.

When a session broke, a router restarted, or another one leads, the next session begins with what this
apiserver asked for and holds: requests that hold a placement in Hello, waiting ones as new Admits.
Requests that run go on meanwhile. New ones wait for the router for `patience_seconds`. A session with the
only router waits for as long as it answers keepalive pings.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import grpc.aio

from llmserve.apiserver.links.requests import AdmissionRefused, PlacementEnd, RoutedRequest, RoutedRequests
from llmserve.config.schema import Scheduling
from llmserve.config.wanted_models import AnsweringModels, ServedName
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import NotLeader, RouterUnavailable
from llmserve.core.ids import ApiserverId
from llmserve.core.request import Outcome
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.adapters import decode_names
from llmserve.rpc.codec import encode_outcome
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE, KvShape, WorkerInfo
from llmserve.rpc.leader import RouterAddresses, RouterSelector
from llmserve.rpc.models import decode_served, encode_answering
from llmserve.rpc.outbox import Outbox
from llmserve.rpc.status import from_grpc

_log = logging.getLogger(__name__)

_HELLO_TIMEOUT_SECONDS = 5.0
_RETRY_AFTER_SECONDS = 2.0
# With several routers: a leader sends something every 0.4 s, and its lease is 2 s.
_LONGEST_SILENCE_SECONDS = 1.5
# So long a message that needs no answer waits for others: less while requests wait for the place that it may
# give back.
_COMPANY_SECONDS, _WANTED_SECONDS = 0.050, 0.005

_UNKNOWN_SHAPE = KvShape()
_Message = router_pb2.RouterSessionRequest


class _DatedMessage(NamedTuple):
    message: router_pb2.RouterSessionRequest
    posted_at: float


class RouterLink:
    """Life: start -> admit / done ... -> aclose (idempotent). It has a session with the router that leads.
    served: the models whose requests are to be taken; None: nobody has told, or models do not come and go.
    served_changed: is set when that changes."""

    def __init__(
        self,
        routers: RouterAddresses,
        apiserver_id: ApiserverId,
        metrics: ApiserverMetrics,
        on_members: Callable[[Sequence[WorkerInfo]], None] = lambda members: None,
        patience_seconds: float = Scheduling().router_patience_seconds,
        answer: Callable[[router_pb2.Question], router_pb2.Answer] | None = None,
        on_adapters: Callable[[Sequence[NamedAdapter]], None] = lambda adapters: None,
    ) -> None:
        self._open, self._routers = routers.open, RouterSelector(routers.addresses)
        self._apiserver_id = apiserver_id
        self._stubs: dict[str, router_pb2_grpc.RouterStub] = {}
        self._epoch = 0  # the latest term that was heard of
        self._metrics, self._answer = metrics, answer
        self._on_members, self._on_adapters = on_members, on_adapters
        self._patience_seconds = patience_seconds
        self._requests = RoutedRequests()
        # Set from a session's hello on, so that changes before the router's answer are not lost.
        self._outbox: Outbox[_DatedMessage] | None = None
        self._company_seconds = _COMPANY_SECONDS
        self.connected = False
        self._give_up: asyncio.TimerHandle | None = None
        self._given_up = False
        self._owner = TaskOwner("router-link")
        self.workers: tuple[WorkerInfo, ...] = ()
        self._kv_shapes: dict[str, KvShape] = {}  # by model
        self.served: tuple[ServedName, ...] | None = None
        self.served_changed = asyncio.Event()
        self._answering: AnsweringModels | None = None

    def kv_shape(self, model: str) -> KvShape:
        """Returns the KV shape of the workers of a model that prefill; an empty one while none is known."""
        return self._kv_shapes.get(model, _UNKNOWN_SHAPE)

    def is_coming(self, model: str) -> bool:
        """Whether a model was loaded while the cluster runs, and its engines are on their way."""
        return any(one.name == model and not (one.ready or one.declared) for one in self.served or ())

    def start(self) -> None:
        self._start_patience()
        self._owner.spawn("session", self._keep_session(), fatal=True)

    # -- what runs ask for; none but admit waits

    async def admit(
        self, admit: router_pb2.Admit, on_placed: Callable[[router_pb2.Placed], None] = lambda placed: None
    ) -> router_pb2.Placement:
        """Waits for a placement. on_placed: gets the router's whole answer. Errors: AdmissionRefused.
        The caller calls done() afterwards, also when it was cancelled; then it may admit the request
        again."""
        if self._given_up:
            raise AdmissionRefused(Outcome.REJECTED, self._away())
        request = self._requests.add(admit, on_placed)
        if self.connected:
            self._send(request)
        return await request.answer

    def first_token(self, request_id: str) -> None:
        """The prefill worker is free again; a restarted router must not count it."""
        self._requests.prefilled(request_id)
        first_token = router_pb2.FirstToken(request_id=request_id)
        self._post(_Message(first_token=first_token), self._company_seconds)

    def progress(self, request_id: str, output_tokens: int) -> None:
        """Reports the number of tokens since the placement."""
        if self._outbox is not None:  # else the next router has yet to count them
            self._requests.progressed(request_id, output_tokens)
        progress = router_pb2.Progress(request_id=request_id, output_tokens=output_tokens)
        self._post(_Message(progress=progress), self._company_seconds)

    def answer_models(self, models: AnsweringModels) -> None:
        """Says for which models this apiserver takes requests."""
        self._answering = models
        self._post(_Message(models=encode_answering(models)))

    def worker_failed(self, worker: WorkerInfo, reason: str, *, stalled: bool = False) -> None:
        """stalled: it is there, and does not answer in time."""
        failed = router_pb2.WorkerFailed(
            worker_id=worker.worker_id, epoch=worker.epoch, reason=reason, stalled=stalled
        )
        self._post(_Message(worker_failed=failed))

    def done(self, request_id: str, end: PlacementEnd) -> None:
        """Gives back what the request holds or waits for. Nothing to do when it has neither. A key with
        limits may ask again at once, at another apiserver too, and would be refused while this one counts."""
        if (request := self._requests.end(request_id)) is not None:
            done = router_pb2.Done(
                request_id=request_id,
                outcome=encode_outcome(end.outcome),
                output_tokens=end.output_tokens,
                cached_tokens=end.prefilled.cached_tokens if end.prefilled else None,
                handover_seconds=end.handover_seconds,
            )
            self._post(_Message(done=done), 0.0 if request.has_key_limits else self._company_seconds)

    def _post(self, message: _Message, within_seconds: float = 0.0) -> None:
        """Sends a message in the session. Without one nothing is lost: the next session begins with all that
        is still true."""
        if self._outbox is not None:
            self._outbox.put(_DatedMessage(message, time.monotonic()), within_seconds)

    # -- the session

    async def _keep_session(self) -> None:
        async with AsyncExitStack() as channels:
            while True:
                try:
                    await self._session(await self._stub(channels))
                    reason = "the router closed it"
                except grpc.aio.AioRpcError as error:
                    reason = from_grpc(error).message
                except TimeoutError:
                    reason = "the router is silent"
                except NotLeader as error:
                    reason = error.message
                self._disconnected(reason)
                await self._routers.failed()

    async def _stub(self, channels: AsyncExitStack) -> router_pb2_grpc.RouterStub:
        """Returns the stub of the router to talk to."""
        address = self._routers.address
        if address not in self._stubs:
            channel = await channels.enter_async_context(self._open(address))
            self._stubs[address] = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
        return self._stubs[address]

    async def _session(self, stub: router_pb2_grpc.RouterStub) -> None:
        outbox: Outbox[_DatedMessage] = Outbox()
        self._outbox = outbox
        hello = router_pb2.Hello(apiserver_id=self._apiserver_id, held=self._requests.held())
        self._post(_Message(hello=hello))
        call = stub.Session(_drain(outbox))
        try:
            responses = aiter(call)
            first = await _next(responses, self._longest_silence or _HELLO_TIMEOUT_SECONDS)
            if first is None:
                return
            self._check_term(first)
            self._routers.succeeded()
            self._connect()
            self._receive_all(first)
            while (batch := await _next(responses, self._longest_silence)) is not None:
                self._receive_all(batch)
        finally:
            call.cancel()
            outbox.close()

    @property
    def _longest_silence(self) -> float | None:
        """None for a single router: there is no other to turn to."""
        return _LONGEST_SILENCE_SECONDS if self._routers.has_others else None

    def _check_term(self, first: router_pb2.RouterSessionResponses) -> None:
        """Errors: NotLeader, when a later term than this router's has begun."""
        epoch = max((response.state.epoch for response in first.messages), default=0)
        if self._routers.has_others and epoch < self._epoch:
            raise NotLeader(f"it leads in term {epoch}, and term {self._epoch} has begun")
        self._epoch = epoch

    def _connect(self) -> None:
        self.connected = True
        self._stop_patience()
        self._metrics.router_connected.set(1)
        _log.info("session with the router at %s started", self._routers.address)
        if self._answering is not None:
            self._post(_Message(models=encode_answering(self._answering)))
        for request in self._requests.waiting():
            self._send(request)

    def _send(self, request: RoutedRequest) -> None:
        """Asks for a placement."""
        self._post(_Message(admit=request.ask()))

    def _disconnected(self, reason: str) -> None:
        self._outbox = None
        if self.connected:
            self.connected = False
            self._metrics.router_connected.set(0)
            self._metrics.router_reconnects_total.inc()
            _log.warning("session with the router at %s broke: %s", self._routers.address, reason)
            self._start_patience()

    def _receive_all(self, batch: router_pb2.RouterSessionResponses) -> None:
        for response in batch.messages:
            self._receive(response)
        self._company_seconds = _WANTED_SECONDS if batch.places_wanted else _COMPANY_SECONDS
        if batch.places_wanted and self._outbox is not None:
            self._outbox.hurry(_WANTED_SECONDS)

    def _receive(self, response: router_pb2.RouterSessionResponse) -> None:
        match response.WhichOneof("message"):
            case "placed":
                self._requests.placed(response.placed)
            case "refused":
                self._requests.refused(response.refused)
            case "state":
                self.workers = tuple(response.state.workers)
                self._kv_shapes = _kv_shapes(self.workers)
                self._on_members(self.workers)
                if response.state.HasField("adapters"):
                    self._on_adapters(decode_names(response.state.adapters))
                if response.state.HasField("models"):
                    self.served = decode_served(response.state.models)
                    self.served_changed.set()
            case "question" if self._answer is not None:
                self._post(_Message(answer=self._answer(response.question)))

    # -- patience: how long requests wait for a router that is away

    def _start_patience(self) -> None:
        self._stop_patience()
        loop = asyncio.get_running_loop()
        self._give_up = loop.call_later(self._patience_seconds, self._refuse_waiting)

    def _stop_patience(self) -> None:
        self._given_up = False
        if self._give_up is not None:
            self._give_up.cancel()
            self._give_up = None

    def _refuse_waiting(self) -> None:
        self._given_up = True
        self._requests.refuse_waiting(self._away)

    def _away(self) -> RouterUnavailable:
        message = f"the router at {self._routers} does not answer"
        return RouterUnavailable(message, retry_after_seconds=_RETRY_AFTER_SECONDS)

    async def wait(self) -> None:
        """Raises the defect that ended the link; routers that come and go do not."""
        raise await self._owner.failed

    async def aclose(self) -> None:
        """Idempotent. The router gives back what this apiserver holds."""
        self._stop_patience()
        await self._owner.aclose()
        self._outbox, self.connected = None, False


def _kv_shapes(workers: Iterable[WorkerInfo]) -> dict[str, KvShape]:
    """Returns the shape of each model: that of a worker that prefills, if there is any."""
    prefill_last = sorted(workers, key=lambda worker: worker.role != WORKER_ROLE_DECODE)
    return {worker.model: worker.kv_shape for worker in prefill_last}


async def _next(
    responses: AsyncIterator[router_pb2.RouterSessionResponses], timeout_seconds: float | None
) -> router_pb2.RouterSessionResponses | None:
    """Returns the next responses; None when the stream has ended. Errors: TimeoutError, AioRpcError."""
    async with asyncio.timeout(timeout_seconds):
        return await anext(responses, None)


async def _drain(outbox: Outbox[_DatedMessage]) -> AsyncIterator[router_pb2.RouterSessionRequests]:
    """Yields until the outbox is closed, since gRPC does not end this when the call ends by itself."""
    while taken := await outbox.take():
        now = time.monotonic()
        for message, posted_at in taken:
            message.age_seconds = now - posted_at
        yield router_pb2.RouterSessionRequests(messages=[message for message, _ in taken])
