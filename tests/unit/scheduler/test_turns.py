"""Turns of tenants that can, and cannot, use them."""

import pytest

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.fairness import FairShare
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.turns import Turns, VirtualTimes

A, B = TenantId("a"), TenantId("b")


@pytest.fixture
def turns() -> Turns:
    made = Turns(FairShare())
    made.join(A)
    made.join(B)
    return made


def test_who_is_passed_over_has_no_turn_until_the_round_ends(turns: Turns) -> None:
    turns.begin_round(0.0, 20.0)
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
    turns.begin_round(6.0, 20.0)
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
    turns.begin_round(4.9, 20.0)
    assert A not in turns
    turns.begin_round(5.0, 20.0)
    assert A in turns
    assert turns.next_ready() is None


def test_times_that_are_out_of_date_wake_nobody(turns: Turns) -> None:
    turns.suspend(A, until=5.0)
    turns.released(A)
    turns.suspend(A, until=9.0)
    assert turns.next_ready() == 9.0
    turns.begin_round(5.0, 20.0)
    assert A not in turns


def test_without_a_time_only_an_end_brings_a_tenant_back(turns: Turns) -> None:
    turns.suspend(A, until=None)
    assert turns.next_ready() is None
    turns.begin_round(1e9, 20.0)
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


# -- turns that were missed for want of a place


def _serve(turns: Turns, tenant: TenantId, tokens: int, now: float) -> None:
    """One round in which A has no place."""
    turns.begin_round(now, 20.0)
    turns.pass_over(A)
    request = QueuedRequest(RequestId(f"{now}"), tenant, now, now, prompt_tokens=tokens)
    turns.fairness.dispatched(request)
    turns.end_round()


def test_who_was_passed_over_gets_the_missed_turns_later(turns: Turns) -> None:
    for now in (1.0, 2.0, 3.0):
        _serve(turns, B, 100, now)
    assert dict(turns.fairness.snapshot().tags) == {A: 0.0, B: 300.0}
    assert turns.next() == A


def test_it_gets_those_of_the_last_seconds_only(turns: Turns) -> None:
    """B starts a request of 100 tokens each second, so that virtual time is 100 (t - 2) before the round at
    t."""
    for second in range(1, 31):
        _serve(turns, B, 100, float(second))
    assert turns.fairness.snapshot().tags[A] == 100.0 * (30 - 20 - 2)


def test_who_is_suspended_gets_none_of_them(turns: Turns) -> None:
    _serve(turns, B, 100, 1.0)
    _serve(turns, B, 100, 2.0)
    turns.suspend(A, until=None)
    turns.released(A)
    assert turns.fairness.snapshot().tags[A] == 100.0


def test_who_is_behind_for_how_long(turns: Turns) -> None:
    for second in range(1, 6):
        _serve(turns, B, 100, float(second))
    turns.begin_round(6.0, 20.0)
    assert [turns.is_behind(A, seconds) for seconds in (0.0, 2.9, 3.0, 3.1)] == [True, True, True, False]
    assert not turns.is_behind(B, 0.0)
    assert not turns.is_behind(TenantId("who does not wait"), 0.0)


def test_virtual_times_are_found_by_their_moment() -> None:
    times = VirtualTimes()
    assert times.at(1e9) == 0.0
    times.note(1.0, 5.0, 10.0)
    times.note(2.0, 5.0, 10.0)
    times.note(2.04, 7.0, 10.0)
    times.note(2.08, 9.0, 10.0)
    assert [times.at(when) for when in (-1e9, 0.99, 1.0, 2.03, 2.04, 2.08, 1e9)] == [0, 0, 5, 5, 7, 7, 7]
    times.note(2.09, 9.0, 10.0)
    assert times.at(2.09) == 9.0


def test_virtual_times_of_long_ago_are_forgotten() -> None:
    times, most = VirtualTimes(), 0
    for second in range(1, 100):
        times.note(float(second), float(second), 10.0)
        most = max(most, len(times._since))
        oldest = max(0.0, second - 10.0)
        assert times.at(second - 10.0) == oldest
    assert most == 22
    assert times.at(0.0) == times._times[0]


def test_those_who_were_passed_over_keep_their_order(turns: Turns) -> None:
    tenants = [A, B, *(TenantId(f"t{number}") for number in range(20))]
    for tenant in tenants[2:]:
        turns.join(tenant)
    turns.begin_round(1.0, 20.0)
    for _ in range(2):
        for expected in tenants:
            assert turns.next() == expected
            turns.pass_over(expected)
        turns.end_round()
