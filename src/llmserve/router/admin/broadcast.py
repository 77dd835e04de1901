"""Asks all apiservers a question over their sessions, and gathers the answers."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from llmserve.core.ids import ApiserverId
from llmserve.rpc.gen.llmserve.v1 import router_pb2

ANSWER_SECONDS = 5.0

Send = Callable[[router_pb2.RouterSessionResponse], None]


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
                send(router_pb2.RouterSessionResponse(question=question))
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
