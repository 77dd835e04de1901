"""Which apiserver stream owns which request, and what each has been given. Decides; does no I/O.

A lease that was granted to a session counts as passed on only while its stream lives: when it
breaks, the tickets that are younger than a lease are to be released, which is harmless for those
that were fetched already.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmserve.config.schema import TransferConfig
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.outcome import FinishReason
from llmserve.core.request import EngineOutput, Logprobs


class SessionOutbox:
    """One producer side (put, close), one consumer (take)."""

    def __init__(self) -> None:
        self._pending: dict[RequestId, list[EngineOutput]] = {}
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, output: EngineOutput) -> None:
        """Never waits. Ignored after close."""
        if self._closed:
            return
        waiting = self._pending.setdefault(output.request_id, [])
        if waiting and can_merge(waiting[-1], output):
            waiting[-1] = merge(waiting[-1], output)
        else:
            waiting.append(output)
        self._ready.set()

    def drop(self, request_id: RequestId) -> list[EngineOutput]:
        """Takes back what is pending for a request that was aborted."""
        return self._pending.pop(request_id, [])

    def close(self) -> None:
        """What is pending is still taken. Idempotent."""
        self._closed = True
        self._ready.set()

    async def take(self) -> list[EngineOutput]:
        """Waits for something to send; in order for each request. Empty: the outbox was closed."""
        while not self._pending and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        pending, self._pending = self._pending, {}
        return [output for outputs in pending.values() for output in outputs]


def can_merge(first: EngineOutput, second: EngineOutput) -> bool:
    return (
        first.finish_reason is None
        and second.prompt_logprobs is None
        and _width(first.logprobs) == _width(second.logprobs)
    )


def _width(logprobs: Logprobs | None) -> int:
    return 0 if logprobs is None else logprobs.width


def merge(first: EngineOutput, second: EngineOutput) -> EngineOutput:
    """Two outputs of one request as one. They can_merge."""
    return EngineOutput(
        request_id=first.request_id,
        token_ids=(*first.token_ids, *second.token_ids),
        finish_reason=second.finish_reason,
        stop_reason=second.stop_reason,
        logprobs=_joined(first.logprobs, second.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        kv_transfer_params=second.kv_transfer_params,
        prefill_stats=first.prefill_stats or second.prefill_stats,
        error=second.error,
        handover=first.handover or second.handover,
    )


def _joined(first: Logprobs | None, second: Logprobs | None) -> Logprobs | None:
    if first is None or second is None:
        return first or second
    return Logprobs(
        width=first.width,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        ranks=first.ranks + second.ranks,
    )


Ticket = Mapping[str, Any]

_DEFAULT_LEASE_SECONDS = TransferConfig().lease_seconds


@dataclass(frozen=True, slots=True)
class _Issued:
    ticket: Ticket
    until: float


@dataclass(eq=False, slots=True)
class ApiserverSession:
    """One stream. draining: the apiserver sends no more; the stream ends with its last request."""

    outbox: SessionOutbox = field(default_factory=SessionOutbox)
    requests: set[RequestId] = field(default_factory=set)
    draining: bool = False
    issued: dict[RequestId, _Issued] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a broken session leaves to be done."""

    aborts: tuple[RequestId, ...]
    releases: tuple[Ticket, ...]


class ApiserverSessions:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: set[ApiserverSession] = set()
        self._owners: dict[RequestId, ApiserverSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def requests(self) -> int:
        return len(self._owners)

    def open(self) -> ApiserverSession:
        session = ApiserverSession()
        self._open.add(session)
        return session

    def claim(self, session: ApiserverSession, request_id: RequestId) -> None:
        """Before the request goes to the engine. Errors: InvalidRequest when the id is taken."""
        if request_id in self._owners:
            raise InvalidRequest(f"request id {request_id} is in use")
        self._owners[request_id] = session
        session.requests.add(request_id)

    def refuse(self, session: ApiserverSession, request_id: RequestId, error: LLMServeError) -> None:
        """Tells the session that a request of its own was not started, or cannot go on."""
        session.outbox.put(error_output(request_id, error))
        self._end_if_drained(session)

    def withdraw(self, session: ApiserverSession, request_id: RequestId) -> list[Ticket]:
        """The session no longer wants the request (or the engine did not take it). Returns the
        tickets that it was granted and that were not sent."""
        if self._owners.get(request_id) is not session:
            return []
        self._forget(session, request_id)
        dropped = session.outbox.drop(request_id)
        self._end_if_drained(session)
        return [out.kv_transfer_params for out in dropped if out.kv_transfer_params is not None]

    def owns(self, session: ApiserverSession, request_id: RequestId) -> bool:
        return self._owners.get(request_id) is session

    def dispatch(self, outputs: Iterable[EngineOutput]) -> list[Ticket]:
        """Puts outputs where they belong. Returns tickets that nobody waits for (any more)."""
        unclaimed: list[Ticket] = []
        for output in outputs:
            session = self._owners.get(output.request_id)
            if session is not None:
                self._deliver(session, output)
            elif output.kv_transfer_params is not None:
                unclaimed.append(output.kv_transfer_params)
        return unclaimed

    def _deliver(self, session: ApiserverSession, output: EngineOutput) -> None:
        session.outbox.put(output)
        if output.kv_transfer_params is not None:
            self._remember(session, output.request_id, output.kv_transfer_params)
        if output.finish_reason is not None:
            self._forget(session, output.request_id)
            self._end_if_drained(session)

    def _remember(self, session: ApiserverSession, request_id: RequestId, ticket: Ticket) -> None:
        now = self._clock.now()
        for old in [key for key, issued in session.issued.items() if issued.until <= now]:
            del session.issued[old]
        lease_seconds = float(ticket.get("lease_seconds", _DEFAULT_LEASE_SECONDS))
        session.issued[request_id] = _Issued(ticket, now + lease_seconds)

    def drain(self, session: ApiserverSession) -> None:
        """The apiserver closed its side: the stream ends once nothing of it runs."""
        session.draining = True
        self._end_if_drained(session)

    def _end_if_drained(self, session: ApiserverSession) -> None:
        if session.draining and not session.requests:
            session.outbox.close()

    def close(self, session: ApiserverSession) -> Leftovers:
        """The stream is gone. Idempotent: a second call leaves nothing to do."""
        self._open.discard(session)
        now = self._clock.now()
        aborts = tuple(session.requests)
        releases = tuple(issued.ticket for issued in session.issued.values() if issued.until > now)
        for request_id in aborts:
            self._forget(session, request_id)
        session.issued.clear()
        session.outbox.close()
        return Leftovers(aborts, releases)

    def give_up(self, error: LLMServeError) -> list[RequestId]:
        """Ends every request with an error and every stream after it. Returns what was running."""
        running = list(self._owners)
        for request_id, session in list(self._owners.items()):
            self._forget(session, request_id)
            session.outbox.put(error_output(request_id, error))
        for session in self._open:
            session.outbox.close()
        return running

    def _forget(self, session: ApiserverSession, request_id: RequestId) -> None:
        self._owners.pop(request_id, None)
        session.requests.discard(request_id)


def error_output(request_id: RequestId, error: LLMServeError) -> EngineOutput:
    """The class name before the colon lets the apiserver raise the same error."""
    text = f"{type(error).__name__}: {error.message}"
    return EngineOutput(request_id, finish_reason=FinishReason.ERROR, error=text)
