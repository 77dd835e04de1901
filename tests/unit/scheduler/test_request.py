"""What requests count, and what is assumed of those that do not say."""

import pytest

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import QueuedRequest, QueueReport, Tally
from llmserve.scheduler.snapshot import SchedulerSnapshot

PLAIN = QueuedRequest(RequestId("r"), TenantId("t"), 0.0, 1.0)


def test_a_request_that_says_nothing() -> None:
    assert (PLAIN.prompt_tokens, PLAIN.max_output_tokens, PLAIN.priority, PLAIN.cached_tokens) == (0, 0, 0, 0)
    assert (PLAIN.charged, PLAIN.choices, PLAIN.expected_output_tokens) == (False, 1, 0)


def test_nothing_was_counted_or_used_at_first() -> None:
    assert Tally() == Tally(0, 0, 0, 0, 0, 0, 0)
    assert QueueReport() == QueueReport({}, 1.0, 1.0)
    assert Capacity() == Capacity(0, 0.0, False, 0)
    assert SchedulerSnapshot().fairness.virtual_time == SchedulerSnapshot().fairness.highest == 0.0


@pytest.mark.parametrize(
    ("prompt", "cached", "output", "work", "context"),
    [(100, 30, 5, 75, 105), (8, 8, 0, 1, 8), (0, 0, 2, 2, 2)],
)
def test_work_is_what_is_computed_and_context_what_is_held(
    prompt: int, cached: int, output: int, work: int, context: int
) -> None:
    request = QueuedRequest(
        RequestId("r"), TenantId("t"), 0.0, 1.0, prompt_tokens=prompt, cached_tokens=cached
    )
    assert (request.work_tokens(output), request.context_tokens(output)) == (work, context)


def test_what_is_expected_does_not_tell_requests_apart() -> None:
    assert QueuedRequest(RequestId("r"), TenantId("t"), 0.0, 1.0, expected_output_tokens=9) == PLAIN


def test_an_older_snapshot_has_spent_less() -> None:
    snapshot = SchedulerSnapshot(spent_seconds={"rate": {TenantId("t"): 5.0}}, kv_io_seconds=3.0)
    aged = snapshot.aged(2.0)
    assert (aged.spent_seconds, aged.kv_io_seconds) == ({"rate": {TenantId("t"): 3.0}}, 1.0)
    assert SchedulerSnapshot().aged(2.0).kv_io_seconds is None
