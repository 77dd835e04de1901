"""Which flow is next."""

from collections.abc import Sequence
from typing import Protocol

from llmserve.scheduler.request import QueuedRequest, Waiting


class Fairness(Protocol):
    """A policy hears of each request it let pass: dispatched once, then ended once."""

    def pick(self, heads: Sequence[Waiting]) -> Waiting:
        """One of `heads`: the next candidate of each flow that has one; never empty."""

    def dispatched(self, request: QueuedRequest) -> None:
        """The request has its place: its tenant is charged the expected cost."""

    def ended(self, request: QueuedRequest, output_tokens: int) -> None:
        """The request is over: the charge is corrected to what it really cost."""


class FifoFairness:
    """The oldest request of all tenants: one queue, in effect."""

    def pick(self, heads: Sequence[Waiting]) -> Waiting:
        if len(heads) == 1:
            return heads[0]
        return min(heads, key=_arrival)

    def dispatched(self, request: QueuedRequest) -> None:
        pass

    def ended(self, request: QueuedRequest, output_tokens: int) -> None:
        pass


def _arrival(waiting: Waiting) -> int:
    return waiting.sequence
