import pytest

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.budgets import RequestBudget
from llmserve.scheduler.request import QueuedRequest


def _request(name: str) -> QueuedRequest:
    return QueuedRequest(RequestId(name), TenantId("t"), 0.0, 1.0)


def test_fits_until_the_limit() -> None:
    budget = RequestBudget(1)
    assert budget.fits(_request("a"))
    budget.reserve(_request("a"))
    assert not budget.fits(_request("b"))
    budget.correct(_request("a"), 7)
    budget.release(_request("a"), 7)
    assert budget.fits(_request("b"))


def test_a_smaller_limit_takes_nothing_back() -> None:
    budget = RequestBudget(2)
    budget.reserve(_request("a"))
    budget.reserve(_request("b"))
    budget.set_limit(1)
    assert budget.in_flight == 2
    budget.release(_request("a"), 7)
    assert not budget.fits(_request("c"))


def test_unbalanced_use_is_a_bug() -> None:
    budget = RequestBudget(2)
    budget.reserve(_request("a"))
    with pytest.raises(AssertionError):
        budget.reserve(_request("a"))
    budget.release(_request("a"), 7)
    with pytest.raises(KeyError):
        budget.release(_request("a"), 7)
