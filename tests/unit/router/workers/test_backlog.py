from itertools import permutations

import pytest

from llmserve.router.workers.backlog import Backlog


def test_what_was_placed_counts_until_its_first_token() -> None:
    backlog = Backlog()
    a, b = backlog.add(2.0, now=10.0), backlog.add(1.0, now=10.0)
    assert backlog.seconds(10.0) == 3.0
    backlog.remove(a, ended_at=12.0)
    assert backlog.seconds(12.0) == 1.0
    backlog.remove(b, ended_at=13.0)
    assert (backlog.seconds(13.0), backlog.prompts) == (0.0, 0)


def test_only_what_is_left_counts() -> None:
    backlog = Backlog()
    a, b = backlog.add(2.0, now=10.0), backlog.add(0.5, now=10.0)
    backlog.remove(a, ended_at=12.0)
    assert backlog.seconds(12.0) == 0.5
    backlog.remove(b, ended_at=12.5)
    backlog.add(0.25, now=13.0)
    assert backlog.seconds(13.0) == 0.25


def test_the_first_counts_less_the_longer_it_runs() -> None:
    backlog = Backlog()
    backlog.add(2.0, now=10.0)
    backlog.add(1.0, now=11.0)
    assert backlog.seconds(11.5) == pytest.approx(1.5)


def test_one_that_is_overdue_takes_nothing_off_the_others() -> None:
    backlog = Backlog()
    backlog.add(2.0, now=0.0)
    backlog.add(1.0, now=1.0)
    assert backlog.seconds(100.0) == 1.0


def test_a_prompt_keeps_the_worker_busy_from_when_the_one_before_it_was_done() -> None:
    backlog = Backlog()
    a, b = backlog.add(1.0, now=0.0), backlog.add(1.0, now=0.5)
    assert backlog.remove(a, ended_at=2.0) == 2.0
    assert backlog.remove(b, ended_at=2.5) == 0.5
    assert backlog.remove(backlog.add(1.0, now=9.0), ended_at=9.25) == 0.25


def test_two_apiservers_may_report_in_the_other_order() -> None:
    backlog = Backlog()
    a, b = backlog.add(1.0, now=0.0), backlog.add(1.0, now=0.0)
    assert backlog.remove(b, ended_at=2.0) == 2.0, "nobody has told that it waited for a"
    assert backlog.seconds(2.0) == 1.0, (
        "a is overdue for all the router knows, and the next prompt waits for it"
    )
    assert backlog.remove(a, ended_at=1.0) == 1.0
    c = backlog.add(1.0, now=1.0)
    assert backlog.remove(c, ended_at=3.0) == 1.0, "from when b was done"


def test_a_prompt_ends_once() -> None:
    backlog = Backlog()
    a = backlog.add(1.0, now=0.0)
    backlog.remove(a, ended_at=0.0)
    with pytest.raises(AssertionError):
        backlog.remove(a, ended_at=0.0)


@pytest.mark.parametrize("heard", list(permutations(range(5))))
def test_a_prompt_is_alone_if_no_other_was_computed_meanwhile_in_whatever_order_they_are_heard_of(
    heard: tuple[int, ...],
) -> None:
    """The third one comes while the second is computed, and the last when the fourth has just ended."""
    backlog, ends = Backlog(), (1.0, 3.0, 3.5, 5.0, 6.0)
    prompts = [backlog.add(1.0, now) for now in (0.0, 1.5, 2.5, 4.0, 5.0)]
    for index in heard:
        backlog.remove(prompts[index], ends[index])
    assert [prompt.alone for prompt in prompts] == [True, False, False, True, True]


def test_nobody_is_alone_before_all_that_were_placed_earlier_have_ended() -> None:
    backlog = Backlog()
    a, b = backlog.add(1.0, now=0.0), backlog.add(1.0, now=2.0)
    backlog.remove(b, ended_at=3.0)
    assert not b.alone
    backlog.remove(a, ended_at=2.0)
    assert b.alone
