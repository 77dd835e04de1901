"""Whether and how a request goes on after a worker failed it."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec.structs import replace

from llmserve.apiserver.request.context import Legs
from llmserve.apiserver.request.rules import RetryBudget
from llmserve.core.errors import LLMServeError, StreamLost, WorkerDraining
from llmserve.core.ids import TenantId
from llmserve.core.request import EngineOutput, Logprobs
from llmserve.metrics.apiserver import ModelMetrics

_MAX_FAILURES = 3


class RetryMode(StrEnum):
    """How the next attempt of a request begins."""

    FRESH = "fresh"  # the user has no token yet
    CONTINUED = "continued"  # it goes on from prompt + tokens so far
    REPLAYED = "replayed"  # it runs again, and tokens that the user has are withheld


class RequestRetries:
    """The attempts of one request. sent: the tokens that the user has; the list grows."""

    def __init__(
        self,
        legs: Legs,
        sent: Sequence[int],
        budget: RetryBudget,
        metrics: ModelMetrics,
        tenant: TenantId,
    ) -> None:
        self._legs, self._sent, self._tenant = legs, sent, tenant
        self._budget, self._metrics = budget, metrics
        self._failures = 0
        self.attempts = 1

    def next_attempt(self) -> RetryMode:
        """Counts an attempt that begins."""
        self.attempts += 1
        mode = RetryMode.FRESH
        if self._sent:
            mode = RetryMode.CONTINUED if self._legs.exact else RetryMode.REPLAYED
        self._metrics.retried(mode)
        return mode

    def give_up_reason(self, error: LLMServeError) -> str:
        """Called once for each failure. Returns why the request ends with it; empty when it goes on
        elsewhere, so that the user cannot tell. A worker that drains and hands its requests back is no
        failure: it counts neither as an attempt nor against the budget."""
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
    """A request that runs again from its prompt, for a user who has its first tokens (`sent`) already.

    So a request goes on whose sampling keeps state from its first output token on (penalties, a grammar, a
    seed): the engine builds that state again by drawing the same tokens. `unseen` takes every output of the
    new run, in order."""

    def __init__(self, sent: Sequence[int]) -> None:
        self._sent = tuple(sent)
        self._seen = 0

    def unseen(self, output: EngineOutput) -> EngineOutput | None:
        """Returns what of an output is new to the user; None when nothing is. Errors: StreamLost, as soon as
        a token differs, or when the run ends before the point where the other one broke off."""
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
