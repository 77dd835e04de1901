"""Whether and how a request goes on after a worker failed it."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from llmserve.apiserver.request.context import Legs
from llmserve.apiserver.request.rules import RetryBudget
from llmserve.core.errors import LLMServeError, StreamLost, WorkerDraining
from llmserve.core.ids import TenantId
from llmserve.core.request import EngineOutput, Logprobs
from llmserve.metrics.apiserver import ApiserverMetrics

_MAX_FAILURES = 3


class RetryMode(StrEnum):
    FRESH = "fresh"  # nothing was sent
    CONTINUED = "continued"  # from prompt and tokens so far
    REPLAYED = "replayed"  # run again, tokens so far not shown


class RetryPolicy:
    """Of one request. sent: the tokens that the user has; it grows."""

    def __init__(
        self,
        legs: Legs,
        sent: Sequence[int],
        budget: RetryBudget,
        metrics: ApiserverMetrics,
        tenant: TenantId,
    ) -> None:
        self._legs, self._sent, self._tenant = legs, sent, tenant
        self._budget, self._metrics = budget, metrics
        self._failures = 0
        self.count = 1

    def again(self) -> RetryMode:
        """The next attempt begins."""
        self.count += 1
        way = (
            RetryMode.FRESH
            if not self._sent
            else RetryMode.CONTINUED
            if self._legs.exact
            else RetryMode.REPLAYED
        )
        self._metrics.retries_total.labels(way).inc()
        return way

    def over_because(self, error: LLMServeError) -> str:
        """Once for each failure. Empty: it goes on elsewhere, and the user cannot tell. A worker that hands
        its requests back is no failure: neither the number of tries nor the budget are for that."""
        if self._sent and self._legs.stuck:
            return f"its {len(self._sent)} tokens so far cannot be continued: {self._legs.stuck}"
        if isinstance(error, StreamLost):
            return f"it had lost a worker after {len(self._sent)} tokens"
        if isinstance(error, WorkerDraining):
            return ""
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            return f"tried on {self._failures} workers"
        if not self._budget.take(self._tenant):
            self._metrics.retries_refused_total.inc()
            return "not tried again, as too many requests are (scheduling.retry_share and others)"
        return ""


_ITEM_BYTES = 4  # of token ids, logprobs and ranks alike


class Replay:
    """sent: the tokens that the user has. Take every output of the new run, in order."""

    def __init__(self, sent: Sequence[int]) -> None:
        self._sent = tuple(sent)
        self._seen = 0

    def unseen(self, output: EngineOutput) -> EngineOutput | None:
        """What of it is new to the user; None: nothing. Errors: StreamLost, as soon as a token differs or
        the run ends before it has reached the point where the other broke off."""
        known = self._sent[self._seen : self._seen + len(output.token_ids)]
        if tuple(output.token_ids[: len(known)]) != known:
            raise StreamLost(f"run again, it says something else after {self._seen} tokens")
        self._seen += len(known)
        if self._seen < len(self._sent) and output.finish_reason is not None:
            raise StreamLost(f"run again, it ends after {self._seen} of {len(self._sent)} tokens")
        if len(output.token_ids) > len(known) or output.finish_reason is not None:
            return _without_first(output, len(known))
        return None


def _without_first(output: EngineOutput, count: int) -> EngineOutput:
    logprobs = output.logprobs and _rows_from(output.logprobs, count)
    return replace(output, token_ids=output.token_ids[count:], logprobs=logprobs)


def _rows_from(logprobs: Logprobs, row: int) -> Logprobs:
    start = row * _ITEM_BYTES
    return Logprobs(
        logprobs.width,
        logprobs.token_ids[start * logprobs.width :],
        logprobs.logprobs[start * logprobs.width :],
        logprobs.ranks[start:],
    )
