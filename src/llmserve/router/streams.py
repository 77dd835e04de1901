"""The open sessions of apiservers, the messages that wait for each, and the questions to all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from llmserve.core.errors import LLMServeError
from llmserve.core.ids import ApiserverId
from llmserve.router.sessions import RouterSession
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.router_pb2 import RouterSessionResponse, RouterSessionResponses

Send = Callable[[RouterSessionResponse], None]


class RouterOutbox:
    """Filled without waiting, emptied by one consumer, which gets all that waits at once. It holds at most
    one answer for each request of the session, and the latest cluster state, which is sent before answers: so
    an apiserver knows the workers that a placement names. Every batch says whether places are wanted.
    idle_seconds: after this long without a message, an empty batch is sent as a sign of life; None: never."""

    def __init__(self, idle_seconds: float | None = None) -> None:
        self._idle_seconds = idle_seconds
        self._answers = RouterSessionResponses()
        self._state: RouterSessionResponse | None = None
        self._places_wanted = self._sent_wanted = False
        self._closed = False
        self._error: LLMServeError | None = None
        self._pending = asyncio.Event()

    def next(self) -> RouterSessionResponse:
        """Returns an empty message that is sent next; the caller fills it at once."""
        self._pending.set()
        return self._answers.messages.add()

    def send(self, message: RouterSessionResponse) -> None:
        self.next().CopyFrom(message)

    def send_state(self, message: RouterSessionResponse) -> None:
        """Replaces a state that waits to be sent. A message without adapters or models keeps those of that
        state."""
        if self._state is not None:
            message = RouterSessionResponse(state=message.state)  # the message is every session's
            waiting, state = self._state.state, message.state
            if waiting.HasField("adapters") and not state.HasField("adapters"):
                state.adapters.CopyFrom(waiting.adapters)
            if waiting.HasField("models") and not state.HasField("models"):
                state.models.CopyFrom(waiting.models)
        self._state = message
        self._pending.set()

    def want_places(self, wanted: bool) -> None:
        """That requests wait for places is sent at once; that none waits, with the next batch."""
        self._places_wanted = wanted
        if wanted:
            self._pending.set()

    def close(self, error: LLMServeError | None = None) -> None:
        """Ends the iteration once it is empty; raises the error, if one is given."""
        if not self._closed:
            self._closed, self._error = True, error
            self._pending.set()

    async def _has_pending(self) -> bool:
        """False: no message came for idle_seconds."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await self._pending.wait()
        except TimeoutError:
            return False

    def _take(self) -> RouterSessionResponses:
        taken, state = self._answers, self._state
        self._answers, self._state = RouterSessionResponses(), None
        if state is not None:
            taken = RouterSessionResponses(messages=[state, *taken.messages])
        taken.places_wanted = self._places_wanted
        return taken

    def _is_news(self, batch: RouterSessionResponses) -> bool:
        return bool(batch.messages) or (batch.places_wanted and not self._sent_wanted)

    async def __aiter__(self) -> AsyncIterator[RouterSessionResponses]:
        while True:
            if self._is_news(batch := self._take()):
                self._sent_wanted = batch.places_wanted
                yield batch
            elif self._closed:
                break
            else:
                self._pending.clear()
                if not await self._has_pending():
                    batch = self._take()
                    self._sent_wanted = batch.places_wanted
                    yield batch
        if self._error is not None:
            raise self._error


@dataclass(eq=False, slots=True)
class SessionStream:
    session: RouterSession
    outbox: RouterOutbox


class SessionStreams:
    """Holds at most one stream of each apiserver."""

    def __init__(self) -> None:
        self._streams: dict[ApiserverId, SessionStream] = {}
        self._places_wanted = False

    def add(self, stream: SessionStream) -> SessionStream | None:
        """Returns the apiserver's older stream, which this one replaces."""
        older = self._streams.get(stream.session.apiserver_id)
        self._streams[stream.session.apiserver_id] = stream
        stream.outbox.want_places(self._places_wanted)
        return older

    def drop(self, stream: SessionStream) -> bool:
        """False: the stream is no longer open, or was replaced."""
        if self._streams.get(stream.session.apiserver_id) is not stream:
            return False
        del self._streams[stream.session.apiserver_id]
        return True

    def next(self, session: RouterSession) -> RouterSessionResponse | None:
        """Returns an empty message for the caller to fill; None: the session has ended."""
        stream = self._streams.get(session.apiserver_id)
        return stream.outbox.next() if stream and stream.session is session else None

    def send_state(self, state: RouterSessionResponse) -> None:
        """Sends the state to all sessions."""
        for stream in self._streams.values():
            stream.outbox.send_state(state)

    def want_places(self, wanted: bool) -> None:
        """Tells all sessions whether requests wait for places."""
        if wanted is not self._places_wanted:
            self._places_wanted = wanted
            for stream in self._streams.values():
                stream.outbox.want_places(wanted)

    def senders(self) -> dict[ApiserverId, Send]:
        return {name: stream.outbox.send for name, stream in self._streams.items()}

    def close(self) -> None:
        """Each stream ends once its messages are sent."""
        for stream in self._streams.values():
            stream.outbox.close()


ANSWER_SECONDS = 5.0


@dataclass(slots=True)
class _Question:
    waiting: set[ApiserverId]
    answers: dict[ApiserverId, router_pb2.Answer] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def leave(self, apiserver_id: ApiserverId) -> None:
        self.waiting.discard(apiserver_id)
        if not self.waiting:
            self.complete.set()


@dataclass(frozen=True, slots=True)
class BroadcastResult:
    """silent: apiservers that have a session and did not answer in time. An apiserver whose session ended
    is in neither field."""

    answers: Mapping[ApiserverId, router_pb2.Answer]
    silent: frozenset[ApiserverId]


class Broadcast:
    """Asks all apiservers a question over their sessions, and gathers the answers."""

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self._numbers = count(1)
        self._open: dict[int, _Question] = {}

    async def ask(
        self, apiservers: Mapping[ApiserverId, Send], question: router_pb2.Question
    ) -> BroadcastResult:
        """Waits until every apiserver has answered or left, for at most answer_seconds."""
        number = next(self._numbers)
        poll = self._open[number] = _Question(set(apiservers))
        question.number = number
        try:
            for send in apiservers.values():
                send(RouterSessionResponse(question=question))
            await self._wait(poll)
        finally:
            del self._open[number]
        return BroadcastResult(poll.answers, frozenset(poll.waiting))

    async def _wait(self, poll: _Question) -> None:
        if poll.waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._answer_seconds):
                    await poll.complete.wait()

    def answered(self, apiserver_id: ApiserverId, answer: router_pb2.Answer) -> None:
        """Ignores an answer that comes too late, or that nobody asked for."""
        poll = self._open.get(answer.number)
        if poll is not None and apiserver_id in poll.waiting:
            poll.answers[apiserver_id] = answer
            poll.leave(apiserver_id)

    def left(self, apiserver_id: ApiserverId) -> None:
        """The apiserver's session has ended."""
        for poll in self._open.values():
            poll.leave(apiserver_id)
