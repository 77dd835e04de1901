"""One request (one sequence), from admission to its last token, whatever happens on the way.

    admit -> prefill leg -> first token to the user -> decode leg -> done

The legs of a placement are in attempt.py. Here the request is placed again when a worker fails or stalls, as
long as the user cannot tell: it goes on from prompt + tokens so far, or runs again and withholds what the
user has (retry.py). The retry budget bounds how many requests do. The router gets Done once for each
placement, and one outcome is counted. No clean-up waits, so a cancelled run ends at once.
"""

import asyncio
import logging

from llmserve.apiserver.links.requests import AdmissionRefused
from llmserve.apiserver.request.attempt import Attempt
from llmserve.apiserver.request.context import Legs, RequestInfo, RunContext, Sink, WorkerFailed
from llmserve.apiserver.request.observe import RunSpans, RunStats
from llmserve.apiserver.request.placement import ChoiceGroup, RequestPlacement
from llmserve.apiserver.request.retry import Replay, RequestRetries, RetryMode
from llmserve.core.errors import (
    DeadlineExceeded,
    LLMServeError,
    Unavailable,
    WorkerStalled,
)
from llmserve.core.logs import RequestNames, name_request
from llmserve.core.request import EngineOutput, Outcome, PrefillStats

_log = logging.getLogger(__name__)


class RequestRun:
    """choices: the group of choices that this one belongs to, which begin together."""

    def __init__(
        self,
        info: RequestInfo,
        legs: Legs,
        sink: Sink,
        context: RunContext,
        choices: ChoiceGroup | None = None,
    ) -> None:
        self._choices = choices
        self._info, self._legs, self._sink, self._context = info, legs, sink, context
        self._sent: list[int] = []
        self._retry = RequestRetries(legs, self._sent, context.retries, context.metrics, info.tenant)
        self._placement = choices.placement if choices else self._own_placement()
        self._replay: Replay | None = None  # of this attempt
        self._has_token = False  # in this attempt
        self._gave_up: LLMServeError | None = None
        self._stats = RunStats(context.metrics, info.record, background=info.background)
        self._spans = RunSpans(context.tracer, info.span)

    def give_up(self, error: LLMServeError) -> None:
        """Sets the error that the client gets when this run's task is cancelled by the server's stop."""
        self._gave_up = error

    @property
    def _name(self) -> str:
        return self._info.request_id

    async def run(self) -> None:
        """Returns when the request has ended. The caller cancels it when the client is gone."""
        outcome = Outcome.CANCELLED
        name_request(RequestNames(self._name, self._info.span.trace_id))
        self._stats.started()
        self._context.retries.started(self._info.tenant)
        try:
            async with asyncio.timeout(self._seconds_left) as deadline:
                self._spans.limit(deadline, self._late())
                await self._serve()
            outcome = Outcome.COMPLETED
        except asyncio.CancelledError:
            if self._gave_up is None:
                raise
            outcome = self._failed(self._gave_up)
        except Exception as error:
            outcome = self._ended_with(error)
        finally:
            self._placement.done(outcome)
            self._stats.ended(outcome, len(self._sent))
            _log.info("request %s %s: tenant=%s %s", self._name, outcome, self._info.tenant, self._stats)

    @property
    def _seconds_left(self) -> float:
        return self._context.limits.request - self._info.waited_seconds

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the request took longer than {self._context.limits.request:g} s")

    def _ended_with(self, error: Exception) -> Outcome:
        match error:
            case TimeoutError():
                return self._failed(self._late())
            case AdmissionRefused():
                return self._failed(error.error, error.outcome)
            case LLMServeError():
                return self._failed(error)
        _log.error("request %s failed on a defect", self._name, exc_info=error)
        return self._failed(LLMServeError("internal error"))

    def _failed(self, error: LLMServeError, outcome: Outcome = Outcome.FAILED) -> Outcome:
        _log.warning("request %s failed: %s", self._name, error.message)
        self._info.record.error = error.message
        self._sink.fail(error)
        return Outcome.FAILED if self._sent else outcome

    async def _serve(self) -> None:
        excluded: list[str] = []
        while True:
            self._has_token = False
            number, resumed = self._retry.attempts, () if self._replay else self._sent
            attempt = Attempt(self._info, self._legs, self._context, self._spans, self._push, number, resumed)
            try:
                if self._choices is not None and number == 1:  # they share the start of their first attempt
                    start = await self._choices.start()
                    await attempt.run_on(start.worker, start.prefill_output)
                else:
                    await attempt.run(await self._placement.ask(self._legs, self._spans, resumed, excluded))
                return
            except WorkerFailed as failure:
                self._place_again(failure)
                excluded.append(failure.worker.worker_id)

    def _place_again(self, failure: WorkerFailed) -> None:
        """Prepares the next attempt. Errors: the worker's, when there is to be none."""
        self._report(failure)
        if why := self._retry.give_up_reason(failure.error):
            raise _with(failure.error, why) from failure
        self._placement.done(Outcome.FAILED)
        self._placement = self._own_placement()
        mode = self._retry.next_attempt()
        self._replay = Replay(self._sent) if mode is RetryMode.REPLAYED else None

    def _own_placement(self) -> RequestPlacement:
        return RequestPlacement(self._info, self._context, [self._info.record])

    def _report(self, failure: WorkerFailed) -> None:
        _log.warning("request %s: %s", self._name, failure)
        self._info.record.worker_failed(failure.worker.worker_id, failure.error.message)
        self._context.metrics.worker_failed(type(failure.error).__name__)
        if isinstance(failure.error, Unavailable | WorkerStalled):  # the worker, not only this request
            stalled = isinstance(failure.error, WorkerStalled)
            self._context.router.worker_failed(failure.worker, failure.error.message, stalled=stalled)

    def _push(self, output: EngineOutput, origin: str) -> bool:
        if output.prefill_stats is not None:
            self._placement.prefilled(output.prefill_stats)
        if output.handover is not None:
            self._info.record.handed_over(output.handover)
            self._placement.handed_over()
        if output.acceptance is not None:
            self._info.record.acceptance = output.acceptance
        if (output.token_ids or output.pooled) and not self._has_token:
            self._first_token(output, origin)
        self._placement.generated += len(output.token_ids)  # with those that the user has already
        if self._placement.generated >= self._placement.report_at:
            self._placement.report_progress()
        unseen = self._replay.unseen(output) if self._replay else output
        if unseen is None:
            return False
        self._sent.extend(unseen.token_ids)
        return self._sink.push(unseen)

    def _first_token(self, output: EngineOutput, origin: str) -> None:
        """The first token of an attempt ends its prefill. That of the request is what the user waited for."""
        self._has_token = True
        self._placement.first_token()
        if not self._sent:
            stats = output.prefill_stats or PrefillStats()
            self._stats.first_token(origin, len(self._legs.prompt), stats)


def _with(error: LLMServeError, why: str) -> LLMServeError:
    message = f"{error.message}; {why}"
    return type(error)(message, retry_after_seconds=error.retry_after_seconds)
