"""When requests are let through."""

from llmserve.core.clock import VirtualClock
from llmserve.kvstore.tiers.object.bucket import BucketGate
from llmserve.transfer.breaker import FIRST_PAUSE_SECONDS


def closed_gate() -> tuple[BucketGate, VirtualClock]:
    clock = VirtualClock()
    gate = BucketGate(clock)
    assert gate.enter()
    assert gate.failed("unreachable")
    return gate, clock


def test_it_is_open_until_something_fails_and_then_says_why() -> None:
    gate, _ = closed_gate()
    assert not gate.enter()
    assert gate.reason == "unreachable"
    assert not gate.failed("late")  # was on its way


def test_after_the_pause_one_goes_ahead_and_opens_it_for_all() -> None:
    gate, clock = closed_gate()
    clock.advance(FIRST_PAUSE_SECONDS)
    assert (gate.enter(), gate.enter()) == (True, False)
    gate.passed()
    assert (gate.enter(), gate.enter()) == (True, True)


def test_one_that_fails_again_closes_it_for_longer() -> None:
    gate, clock = closed_gate()
    clock.advance(FIRST_PAUSE_SECONDS)
    assert gate.enter()
    assert gate.failed("still")
    clock.advance(FIRST_PAUSE_SECONDS)
    assert not gate.enter()
    clock.advance(FIRST_PAUSE_SECONDS)
    assert gate.enter()


def test_one_that_proved_nothing_leaves_its_turn_to_the_next() -> None:
    gate, clock = closed_gate()
    clock.advance(FIRST_PAUSE_SECONDS)
    assert gate.enter()
    gate.left()
    assert gate.enter()
