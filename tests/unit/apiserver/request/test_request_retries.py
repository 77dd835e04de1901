"""When a request goes on after a failure, and how."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from llmserve.apiserver.request.context import Legs
from llmserve.apiserver.request.retry import RequestRetries, RetryMode
from llmserve.apiserver.request.rules import RetryBudget, RetryLimits
from llmserve.core.errors import LLMServeError, StreamLost, WorkerDraining, WorkerLost
from llmserve.core.ids import TenantId
from llmserve.metrics.apiserver import ModelMetrics, RequestMetrics

T = TenantId("t")
LOST = WorkerLost("gone")


class Case:
    def __init__(self, *, exact: bool = True, stuck: str = "", burst: int = 10) -> None:
        self.registry = CollectorRegistry()
        self.sent: list[int] = []
        self.budget = RetryBudget(RetryLimits(share=0.0, burst=burst, tenant_share=1.0))
        legs = cast("Legs", SimpleNamespace(exact=exact, stuck=stuck))
        metrics = ModelMetrics(RequestMetrics(self.registry), "m")
        self.policy = RequestRetries(legs, self.sent, self.budget, metrics, T)

    def count(self, name: str, **labels: str) -> Any:
        return self.registry.get_sample_value(name, labels)

    def reasons(self, *errors: LLMServeError) -> list[str]:
        return [self.policy.give_up_reason(error) for error in errors]


def test_the_third_failure_is_the_last() -> None:
    case = Case()
    assert case.reasons(LOST, LOST, LOST) == ["", "", "tried on 3 workers"]
    assert case.budget.left == 8, "the last one takes nothing from the budget"


def test_a_draining_worker_counts_neither_as_a_failure_nor_against_the_budget() -> None:
    case = Case(burst=2)
    assert case.reasons(*[WorkerDraining("bye")] * 5, LOST, LOST) == [""] * 7
    assert case.budget.left == 0


def test_an_empty_budget_ends_the_request() -> None:
    case = Case(burst=1)
    first, second = case.reasons(LOST, LOST)
    assert first == ""
    assert "not tried again" in second
    assert case.count("apiserver_retries_refused_total", model="m") == 1


def test_a_stuck_request_ends_only_once_the_user_has_tokens() -> None:
    case = Case(exact=False, stuck="penalties")
    assert case.reasons(LOST) == [""]
    case.sent.extend([1, 2])
    assert (
        case.reasons(LOST, WorkerDraining("bye"))
        == ["its 2 tokens so far cannot be continued: penalties"] * 2
    )


def test_a_replay_that_differs_is_not_tried_again() -> None:
    case = Case(exact=False)
    case.sent.extend([1, 2, 3])
    assert case.reasons(StreamLost("differs")) == ["it had lost a worker after 3 tokens"]
    assert case.budget.left == 10


@pytest.mark.parametrize(
    ("sent", "exact", "mode"),
    [
        ([], True, RetryMode.FRESH),
        ([], False, RetryMode.FRESH),
        ([1], True, RetryMode.CONTINUED),
        ([1], False, RetryMode.REPLAYED),
    ],
)
def test_how_the_next_attempt_begins(sent: list[int], exact: bool, mode: RetryMode) -> None:
    case = Case(exact=exact)
    case.sent.extend(sent)
    assert case.policy.attempts == 1
    assert case.policy.next_attempt() is mode
    assert case.policy.attempts == 2
    (sample,) = [
        sample
        for metric in case.registry.collect()
        for sample in metric.samples
        if sample.name == "apiserver_retries_total" and sample.value
    ]
    assert (list(sample.labels.values()), sample.value) == (["m", mode.value], 1)
