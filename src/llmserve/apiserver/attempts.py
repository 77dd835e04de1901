"""Whether a request that a worker failed is placed again, and how it goes on then."""

from collections.abc import Sequence
from enum import StrEnum

from llmserve.apiserver.legs import Legs
from llmserve.apiserver.retry_budget import RetryBudget
from llmserve.core.errors import LLMServeError, StreamLost, WorkerDraining
from llmserve.core.ids import TenantId
from llmserve.metrics.apiserver import ApiserverMetrics

_MAX_FAILURES = 3


class Way(StrEnum):
    FRESH = "fresh"  # nothing was sent
    CONTINUED = "continued"  # from prompt and tokens so far
    REPLAYED = "replayed"  # run again, tokens so far not shown


class Attempts:
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

    def again(self) -> Way:
        """The next attempt begins."""
        self.count += 1
        way = Way.FRESH if not self._sent else Way.CONTINUED if self._legs.exact else Way.REPLAYED
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
