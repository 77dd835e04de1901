"""Turns of tenants that can, and cannot, use them."""

import pytest

from llmserve.core.ids import TenantId
from llmserve.scheduler.fairness import FairShare, Turns

A, B = TenantId("a"), TenantId("b")


@pytest.fixture
def turns() -> Turns:
    made = Turns(FairShare())
    made.join(A)
    made.join(B)
    return made


def test_who_is_passed_over_has_no_turn_until_the_round_ends(turns: Turns) -> None:
    turns.begin_round(0.0)
    turns.pass_over(A)
    assert (A in turns, B in turns) == (False, True)
    assert turns.next() == B
    turns.pass_over(B)
    assert turns.next() is None
    turns.end_round()
    assert (A in turns, B in turns) == (True, True)
    assert turns.next() in (A, B)
    turns.check_integrity({A, B}, set())


def test_a_round_that_ends_twice_gives_nobody_two_turns(turns: Turns) -> None:
    turns.pass_over(A)
    turns.end_round()
    turns.end_round()
    turns.check_integrity({A, B}, set())


def test_who_leaves_while_it_is_passed_over_does_not_come_back(turns: Turns) -> None:
    turns.pass_over(A)
    turns.leave(A)
    turns.end_round()
    assert turns.next() == B
    turns.check_integrity({B}, set())


def test_who_leaves_while_it_is_suspended_does_not_come_back(turns: Turns) -> None:
    turns.suspend(A, until=5.0)
    turns.leave(A)
    assert turns.next_ready() is None
    turns.begin_round(6.0)
    assert turns.next() == B
    turns.check_integrity({B}, set())


def test_a_round_that_is_under_way_is_no_state_to_rest_in(turns: Turns) -> None:
    turns.pass_over(A)
    with pytest.raises(AssertionError, match="a round is under way"):
        turns.check_integrity({A, B}, set())


def test_a_suspended_tenant_returns_at_its_time(turns: Turns) -> None:
    turns.suspend(A, until=5.0)
    assert A not in turns
    assert turns.next_ready() == 5.0
    turns.begin_round(4.9)
    assert A not in turns
    turns.begin_round(5.0)
    assert A in turns
    assert turns.next_ready() is None


def test_times_that_are_out_of_date_wake_nobody(turns: Turns) -> None:
    turns.suspend(A, until=5.0)
    turns.released(A)
    turns.suspend(A, until=9.0)
    assert turns.next_ready() == 9.0
    turns.begin_round(5.0)
    assert A not in turns


def test_without_a_time_only_an_end_brings_a_tenant_back(turns: Turns) -> None:
    turns.suspend(A, until=None)
    assert turns.next_ready() is None
    turns.begin_round(1e9)
    assert A not in turns
    turns.released(A)
    turns.released(A)
    assert A in turns
    turns.check_integrity({A, B}, set())


def test_other_limits_bring_all_back(turns: Turns) -> None:
    turns.suspend(A, until=5.0)
    turns.suspend(B, until=None)
    turns.restart()
    assert (A in turns, B in turns) == (True, True)
    turns.check_integrity({A, B}, set())
