"""The streams of apiservers: which stream owns which request, what it has been granted, and what it has to
send.

A lease that was granted to a session counts as passed on only while its stream lives. When the stream breaks,
the pull params whose leases still run are to be released, which is harmless for those that were fetched
already.

While a stream is slow, all outputs that wait for it merge into one message with at most one delta for each
request, so that the memory they take is bounded by the requests of the session.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.lease_table import LeaseTable
from llmserve.core.request import EngineOutput, FinishReason, Logprobs

KvParams = Mapping[str, Any]

_DEFAULT_LEASE_SECONDS = 30.0


class DeltaOutbox:
    """What a session has to send. One side produces (put, drop, close), one consumes (take)."""

    def __init__(self) -> None:
        self._pending: dict[RequestId, list[EngineOutput]] = {}
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, output: EngineOutput) -> None:
        """Never waits. Does nothing after `close`."""
        if self._closed:
            return
        waiting = self._pending.get(output.request_id)
        if waiting is None:
            self._pending[output.request_id] = [output]
            self._ready.set()
        elif can_merge(waiting[-1], output):
            waiting[-1] = merge(waiting[-1], output)
        else:
            waiting.append(output)

    def drop(self, request_id: RequestId) -> list[EngineOutput]:
        """Takes back what waits for a request that was aborted."""
        return self._pending.pop(request_id, [])

    def close(self) -> None:
        """Ends `take` once it has returned what still waits. Idempotent."""
        self._closed = True
        self._ready.set()

    async def take(self) -> list[EngineOutput]:
        """Waits for outputs and returns them, in order for each request. An empty list: the outbox is
        closed."""
        while not self._pending and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        pending, self._pending = self._pending, {}
        return list(chain.from_iterable(pending.values()))


def can_merge(first: EngineOutput, second: EngineOutput) -> bool:
    return (
        first.finish_reason is None
        and second.prompt_logprobs is None
        and _width(first.logprobs) == _width(second.logprobs)
    )


def _width(logprobs: Logprobs | None) -> int:
    return 0 if logprobs is None else logprobs.width


def merge(first: EngineOutput, second: EngineOutput) -> EngineOutput:
    """Returns two outputs of one request as one. `can_merge` must hold for them."""
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
        adapter_load=first.adapter_load or second.adapter_load,
        acceptance=second.acceptance,
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


@dataclass(eq=False, slots=True)
class WorkerSession:
    """One stream. draining: the apiserver sends no more; the stream ends with its last request. leases: the
    pull params of the leases that were granted to it, by request."""

    leases: LeaseTable[RequestId, KvParams]
    outbox: DeltaOutbox = field(default_factory=DeltaOutbox)
    requests: set[RequestId] = field(default_factory=set)
    draining: bool = False


@dataclass(frozen=True, slots=True)
class SessionRemains:
    """What is left to do for a session whose stream is gone."""

    aborts: tuple[RequestId, ...]
    releases: tuple[KvParams, ...]


class WorkerSessions:
    """Decides; does no I/O. running: the session of each request that runs; public for reading."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: set[WorkerSession] = set()
        self.running: dict[RequestId, WorkerSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self) -> WorkerSession:
        session = WorkerSession(LeaseTable(self._clock, remembered_ends=0))
        self._open.add(session)
        return session

    def claim(self, session: WorkerSession, request_id: RequestId) -> None:
        """Called before the request goes to the engine. Errors: InvalidRequest when the id is taken."""
        if request_id in self.running:
            raise InvalidRequest(f"request id {request_id} is in use")
        self.running[request_id] = session
        session.requests.add(request_id)

    def refuse(self, session: WorkerSession, request_id: RequestId, error: LLMServeError) -> None:
        """Tells the session that one of its requests was not started, or cannot go on."""
        session.outbox.put(error_output(request_id, error))
        self._end_if_drained(session)

    def withdraw(self, session: WorkerSession, request_id: RequestId) -> list[KvParams]:
        """Drops a request that the session no longer wants, or that the engine did not take. Returns the pull
        params that the request was granted and that were not sent."""
        if self.running.get(request_id) is not session:
            return []
        self._forget(session, request_id)
        dropped = session.outbox.drop(request_id)
        self._end_if_drained(session)
        return [output.kv_transfer_params for output in dropped if output.kv_transfer_params is not None]

    def owns(self, session: WorkerSession, request_id: RequestId) -> bool:
        return self.running.get(request_id) is session

    def dispatch(self, outputs: Iterable[EngineOutput]) -> list[KvParams]:
        """Gives outputs to the sessions that own their requests. Returns pull params that nobody waits
        for."""
        unclaimed: list[KvParams] = []
        for output in outputs:
            session = self.running.get(output.request_id)
            if session is not None:
                session.outbox.put(output)
            if output.kv_transfer_params is not None:
                if session is None:
                    unclaimed.append(output.kv_transfer_params)
                else:
                    self._remember_lease(session, output.request_id, output.kv_transfer_params)
            if output.finish_reason is not None and session is not None:
                self._forget(session, output.request_id)
                self._end_if_drained(session)
        return unclaimed

    def _remember_lease(self, session: WorkerSession, request_id: RequestId, params: KvParams) -> None:
        session.leases.take_expired()
        session.leases.grant(request_id, params, float(params.get("lease_seconds", _DEFAULT_LEASE_SECONDS)))

    def drain(self, session: WorkerSession) -> None:
        """Called when the apiserver has closed its side: the stream ends once none of its requests runs."""
        session.draining = True
        self._end_if_drained(session)

    def _end_if_drained(self, session: WorkerSession) -> None:
        if session.draining and not session.requests:
            session.outbox.close()

    def close(self, session: WorkerSession) -> SessionRemains:
        """Called when the stream is gone. Idempotent: a second call leaves nothing to do."""
        self._open.discard(session)
        aborts = tuple(session.requests)
        for request_id in aborts:
            self._forget(session, request_id)
        session.leases.take_expired()
        releases = tuple(session.leases.release(request_id) for request_id in list(session.leases))
        session.outbox.close()
        return SessionRemains(aborts, releases)

    def give_up(self, error: LLMServeError) -> list[RequestId]:
        """Ends every request with an error, and every stream after it. Returns the requests that ran."""
        running = list(self.running)
        for request_id, session in list(self.running.items()):
            self._forget(session, request_id)
            session.outbox.put(error_output(request_id, error))
        for session in self._open:
            session.outbox.close()
        return running

    def _forget(self, session: WorkerSession, request_id: RequestId) -> None:
        self.running.pop(request_id, None)
        session.requests.discard(request_id)


def error_output(request_id: RequestId, error: LLMServeError) -> EngineOutput:
    """Returns the last output of a request that failed. The apiserver raises the class that its text
    names."""
    text = f"{type(error).__name__}: {error.message}"
    return EngineOutput(request_id, finish_reason=FinishReason.ERROR, error=text)
