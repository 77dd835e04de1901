"""One request (one sequence), from admission to its last token, whatever happens on the way.

    admit -> prefill leg -> first token to the user -> decode leg -> done

The legs of a placement are in placed_run.py. Kept here: the request is placed again when a worker fails
or stalls, as long as that is invisible to the user: it goes on from prompt + tokens so far, or runs again
and is not shown what the user has (legs.py), and the retry budget bounds how many do. The router hears Done
once for each placement; one outcome is counted. Nothing in a clean-up waits, so a cancelled run is gone at
once.
"""

import asyncio
import logging
from collections.abc import Sequence

from llmserve.apiserver.links.router import AdmissionRefused
from llmserve.apiserver.request.attempt import Attempt, Try
from llmserve.apiserver.request.context import Legs, RequestInfo, RunContext, Sink, WorkerFailed
from llmserve.apiserver.request.observe import RunSpans, RunStats
from llmserve.apiserver.request.placement import ChoiceGroup, RequestPlacement
from llmserve.apiserver.request.retry import Replay, RetryMode, RetryPolicy
from llmserve.core.errors import (
    DeadlineExceeded,
    LLMServeError,
    Unavailable,
    WorkerStalled,
)
from llmserve.core.logs import RequestNames, name_request
from llmserve.core.outcome import Outcome
from llmserve.core.request import EngineOutput, PrefillStats

_log = logging.getLogger(__name__)


class RequestRun:
    """choices: this is one of several of a request, which begin together."""

    def __init__(
        self,
        card: RequestInfo,
        legs: Legs,
        sink: Sink,
        context: RunContext,
        choices: ChoiceGroup | None = None,
    ) -> None:
        self._choices = choices
        self._card, self._legs, self._sink, self._context = card, legs, sink, context
        self._sent: list[int] = []
        self._attempts = RetryPolicy(legs, self._sent, context.retries, context.metrics, card.tenant)
        self._place = choices.place if choices else self._own_place()
        self._replay: Replay | None = None  # in this attempt
        self._heard = False  # a token, in this attempt
        self._gave_up: LLMServeError | None = None
        self._stats = RunStats(context.metrics, card.record)
        self._spans = RunSpans(context.tracer, card.span)

    def give_up(self, error: LLMServeError) -> None:
        """Its task is about to be cancelled, not by the client: who is told `error`, if it has not ended."""
        self._gave_up = error

    @property
    def _name(self) -> str:
        return self._card.request_id

    async def run(self) -> None:
        """Ends when the request has. Cancel it when the client is gone."""
        outcome = Outcome.CANCELLED
        name_request(RequestNames(self._name, self._card.span.trace_id))
        self._stats.started()
        self._context.retries.started(self._card.tenant)
        try:
            outcome = await self._to_its_end()
        except asyncio.CancelledError:
            if self._gave_up is None:
                raise
            outcome = self._failed(self._gave_up)
        finally:
            self._place.done(outcome)
            self._stats.ended(outcome, len(self._sent))
            _log.info("request %s %s: tenant=%s %s", self._name, outcome, self._card.tenant, self._stats)

    async def _to_its_end(self) -> Outcome:
        seconds = self._context.limits.request
        late = DeadlineExceeded(f"the request took longer than {seconds:g} s")
        try:
            async with asyncio.timeout(seconds) as deadline:
                self._spans.limit(deadline, late)
                await self._serve()
        except TimeoutError:
            return self._failed(late)
        except AdmissionRefused as refused:
            return self._failed(refused.error, refused.outcome)
        except LLMServeError as error:
            return self._failed(error)
        except Exception:
            _log.exception("request %s failed on a defect", self._name)
            return self._failed(LLMServeError("internal error"))
        return Outcome.COMPLETED

    def _failed(self, error: LLMServeError, outcome: Outcome = Outcome.FAILED) -> Outcome:
        _log.warning("request %s failed: %s", self._name, error.message)
        self._card.record.error = error.message
        self._sink.fail(error)
        return Outcome.FAILED if self._sent else outcome

    async def _serve(self) -> None:
        excluded: list[str] = []
        while True:
            self._heard = False
            try:
                return await self._attempt(excluded)
            except WorkerFailed as failure:
                self._report(failure)
                if why := self._attempts.over_because(failure.error):
                    raise _with(failure.error, why) from failure
                self._place.done(Outcome.FAILED)
                self._place = self._own_place()
                self._replay = Replay(self._sent) if self._attempts.again() is RetryMode.REPLAYED else None
                excluded.append(failure.worker.worker_id)

    async def _attempt(self, excluded: Sequence[str]) -> None:
        """The first one of several choices is that of all of them."""
        this = Try(self._attempts.count, self._as_prompt)
        run = Attempt(self._card, self._legs, self._context, self._spans, this, self._push)
        if self._choices is not None and self._attempts.count == 1:
            start = await self._choices.start()
            await run.go_on(start.worker, start.prefill_output)
        else:
            await run.run(await self._place.ask(self._legs, self._spans, self._as_prompt, excluded))

    def _own_place(self) -> RequestPlacement:
        return RequestPlacement(self._card, self._context, [self._card.record])

    def _report(self, failure: WorkerFailed) -> None:
        _log.warning("request %s: %s", self._name, failure)
        self._card.record.worker_failed(failure.worker.worker_id, failure.error.message)
        self._context.metrics.worker_failures_total.labels(type(failure.error).__name__).inc()
        if isinstance(failure.error, Unavailable | WorkerStalled):  # the worker, not only this request
            stalled = isinstance(failure.error, WorkerStalled)
            self._context.router.worker_failed(failure.worker, failure.error.message, stalled=stalled)

    @property
    def _as_prompt(self) -> Sequence[int]:
        """The tokens so far that this attempt goes on from."""
        return () if self._replay else self._sent

    def _push(self, output: EngineOutput, origin: str) -> bool:
        if output.prefill_stats is not None:
            self._place.prefilled(output.prefill_stats)
        if output.token_ids and not self._heard:
            self._first_token(output, origin)
        if output.handover is not None:
            self._card.record.handovers.append(output.handover)
        self._place.generated(len(output.token_ids))  # what the user had already included
        unseen = self._replay.unseen(output) if self._replay else output
        if unseen is None:
            return False
        self._sent.extend(unseen.token_ids)
        return self._sink.push(unseen)

    def _first_token(self, output: EngineOutput, origin: str) -> None:
        """Of an attempt: prefill is over. Of the first: what the user waited for."""
        self._heard = True
        self._place.first_token()
        if not self._sent:
            stats = output.prefill_stats or PrefillStats()
            self._stats.first_token(origin, len(self._legs.prompt), stats)


def _with(error: LLMServeError, why: str) -> LLMServeError:
    message = f"{error.message}; {why}"
    return type(error)(message, retry_after_seconds=error.retry_after_seconds)
