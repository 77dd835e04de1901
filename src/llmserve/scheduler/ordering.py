"""Which request is next within a flow, and how long its answer is expected to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from llmserve.config.schema import Scheduling
from llmserve.core.ids import TenantId
from llmserve.core.request import MOST_PRIORITY
from llmserve.scheduler.request import QueuedRequest


class Ordering(Protocol):
    def key(self, request: QueuedRequest) -> float:
        """Smallest first; equal keys are served in the order of arrival. Asked once, on arrival."""


_DEFAULTS = Scheduling()


@dataclass(frozen=True, slots=True)
class ShortestFirst:
    """Shortest expected work first, with aging: each request queues as if it had arrived later by the
    seconds that its work and its priority are worth. A fixed key is enough, because waiting favours all
    requests alike.

    Bound: a request is overtaken by none that arrives aging_seconds + 2 * MOST_PRIORITY * priority_seconds
    after it, or later. A request whose deadline comes before its key queues by its deadline.

    seconds_per_1000_tokens: worth of expected work; 0: order of arrival. aging_seconds: the most that work
    counts. priority_seconds: worth of one step of priority."""

    seconds_per_1000_tokens: float = _DEFAULTS.srpt_bias
    aging_seconds: float = _DEFAULTS.aging_seconds
    priority_seconds: float = _DEFAULTS.priority_seconds

    def key(self, request: QueuedRequest) -> float:
        work = request.work_tokens(request.expected_output_tokens)
        size = min(self.seconds_per_1000_tokens * work / 1000, self.aging_seconds)
        priority = max(-MOST_PRIORITY, min(request.priority, MOST_PRIORITY)) * self.priority_seconds
        return min(request.arrived_at + size + priority, request.deadline)


@dataclass(frozen=True, slots=True)
class AdapterTurns:
    """How long requests wait for others' adapters. packing_seconds: for this long, a request whose adapter no
    worker has loaded lets later ones of its tenant go first; 0: the order is kept. aging_seconds: after this
    long without a slot, the next one that can be freed is kept for it."""

    packing_seconds: float = _DEFAULTS.adapter_packing
    aging_seconds: float = _DEFAULTS.aging_seconds

    @property
    def patience_seconds(self) -> float:
        """How far a tenant may be behind its turn for want of slots before others leave slots to it: adapters
        that change hands more often cost everybody more."""
        return self.aging_seconds / 10


# Of a tenant nothing is known of: a chat answer.
_FIRST_GUESS_TOKENS = 256.0
# What the latest answer counts in the mean: it follows a change of habit within some 20 requests.
_LATEST = 1 / 16
# Means that are kept: those of the tenants whose requests have ended last.
_MOST_TENANTS = 1024


class OutputEstimates:
    """The mean output of each tenant. An issuer of tokens may name any number of tenants, so those whose last
    request ended longest ago are forgotten."""

    def __init__(self) -> None:
        self._mean: dict[TenantId, float] = {}

    def expected(self, request: QueuedRequest) -> int:
        """Returns the expected output tokens: the tenant's mean for each choice, at least 1 token, at most
        what the request may generate."""
        expected = max(1, round(self._mean.get(request.tenant, _FIRST_GUESS_TOKENS))) * request.choices
        if request.max_output_tokens > 0:
            expected = min(expected, request.max_output_tokens)
        return expected

    def snapshot(self) -> dict[TenantId, float]:
        """Means in tokens."""
        return dict(self._mean)

    def restore(self, means: Mapping[TenantId, float]) -> None:
        self._mean = dict(means)

    def learn(self, tenant: TenantId, output_tokens: int) -> None:
        """A request of the tenant has ended. output_tokens: tokens of each choice. 0: it was given up, and
        teaches nothing."""
        if output_tokens > 0:
            mean = self._mean.pop(tenant, float(output_tokens))
            self._mean[tenant] = mean + _LATEST * (output_tokens - mean)
            if len(self._mean) > _MOST_TENANTS:
                del self._mean[next(iter(self._mean))]
