import pytest

from llmserve.router.workers.worker import Backlog


def test_what_was_placed_counts_until_its_first_token() -> None:
    backlog = Backlog()
    backlog.add("a", 2.0, now=10.0)
    backlog.add("b", 1.0, now=10.0)
    assert backlog.seconds(10.0) == 3.0
    backlog.remove("a", now=12.0)
    assert backlog.seconds(12.0) == 1.0
    backlog.remove("b", now=13.0)
    assert (backlog.seconds(13.0), backlog.prompts) == (0.0, 0)


def test_only_what_is_left_counts() -> None:
    backlog = Backlog()
    backlog.add("a", 2.0, now=10.0)
    backlog.add("b", 0.5, now=10.0)
    backlog.remove("a", now=12.0)
    assert backlog.seconds(12.0) == 0.5
    backlog.remove("b", now=12.5)
    backlog.add("c", 0.25, now=13.0)
    assert backlog.seconds(13.0) == 0.25


def test_the_first_counts_less_the_longer_it_runs() -> None:
    backlog = Backlog()
    backlog.add("a", 2.0, now=10.0)
    backlog.add("b", 1.0, now=11.0)
    assert backlog.seconds(11.5) == pytest.approx(1.5)


def test_one_that_is_overdue_takes_nothing_off_the_others() -> None:
    backlog = Backlog()
    backlog.add("stuck", 2.0, now=0.0)
    backlog.add("b", 1.0, now=1.0)
    assert backlog.seconds(100.0) == 1.0


def test_a_prompt_keeps_the_worker_busy_from_when_the_one_before_it_was_done() -> None:
    backlog = Backlog()
    backlog.add("a", 1.0, now=0.0)
    backlog.add("b", 1.0, now=0.5)
    assert backlog.remove("a", now=2.0) == 2.0
    assert backlog.remove("b", now=2.5) == 0.5
    backlog.add("c", 1.0, now=9.0)
    assert backlog.remove("c", now=9.25) == 0.25


def test_two_apiservers_may_report_in_the_other_order() -> None:
    backlog = Backlog()
    backlog.add("a", 1.0, now=0.0)
    backlog.add("b", 1.0, now=0.0)
    assert backlog.remove("b", now=2.0) == 2.0
    assert backlog.remove("a", now=1.0) == 0.0
    backlog.add("c", 1.0, now=1.0)
    assert backlog.remove("c", now=3.0) == 1.0, "from when b was done"


def test_what_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(KeyError):
        Backlog().remove("a", now=0.0)
