"""All budgets together: those of the cluster, and those that each tenant has of its own."""

from collections.abc import Sequence, Set

from llmserve.core.ids import RequestId
from llmserve.scheduler.budgets import Budget
from llmserve.scheduler.request import QueuedRequest


class BudgetSet:
    """Called as one budget is (budgets.Budget)."""

    def __init__(self, cluster: Sequence[Budget], own: Sequence[Budget]) -> None:
        self._cluster, self._own, self._all = cluster, own, (*cluster, *own)

    # -- is there room

    def fits(self, request: QueuedRequest) -> bool:
        return all(budget.fits(request) for budget in self._all)

    def full_in_cluster(self, request: QueuedRequest) -> Budget | None:
        """The first of the cluster that has no room for it."""
        return _full(self._cluster, request)

    def full_of_tenant(self, request: QueuedRequest) -> Budget | None:
        """The first of its tenant's own that has no room for it."""
        return _full(self._own, request)

    def used_up(self, request: QueuedRequest) -> list[str]:
        """The names of those that have no room for it."""
        return [budget.name for budget in self._all if not budget.fits(request)]

    def refusal(self, request: QueuedRequest) -> str:
        """Why the request fits at no time, in words; empty when it will."""
        return next(filter(None, (budget.refusal(request) for budget in self._all)), "")

    def wait_seconds(self, request: QueuedRequest, ahead: int) -> float:
        """Until the request fits, when this many like it, of its tenant, come first. 0: nothing is known."""
        return max(budget.wait(request, ahead).seconds for budget in self._all)

    # -- what requests hold

    def reserve(self, request: QueuedRequest) -> None:
        for budget in self._all:
            budget.reserve(request)

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        for budget in self._all:
            budget.correct(request, output_tokens)

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        for budget in self._all:
            budget.release(request, output_tokens)

    def check_integrity(self, running: Set[RequestId]) -> None:
        """Raises AssertionError when one does not hold exactly what these requests hold."""
        for budget in self._all:
            budget.check_integrity(running)


def _full(budgets: Sequence[Budget], request: QueuedRequest) -> Budget | None:
    return next((budget for budget in budgets if not budget.fits(request)), None)
