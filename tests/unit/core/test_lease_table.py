from collections.abc import Iterator
from math import inf

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmserve.core.clock import VirtualClock
from llmserve.core.lease_table import LeaseAnswer, LeaseTable

EPOCH = 7


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture
def table(clock: VirtualClock) -> Iterator[LeaseTable[str, int]]:
    table: LeaseTable[str, int] = LeaseTable(clock, epoch=EPOCH, remembered_ends=2)
    yield table
    table.check_integrity()


def test_open_leases_are_a_mapping_in_the_order_of_grants(table: LeaseTable[str, int]) -> None:
    table.grant("b", 1, 5)
    table.grant("a", 2, 1)
    assert list(table.items()) == [("b", 1), ("a", 2)]
    assert (len(table), "a" in table, "c" in table, table.get("c")) == (2, True, False, None)


def test_a_message_finds_a_lease_open_ended_or_unknown(table: LeaseTable[str, int]) -> None:
    table.grant("a", 1, 10)
    assert table.check("a", EPOCH) is LeaseAnswer.VALID
    assert table.check("b", EPOCH) is LeaseAnswer.UNKNOWN
    assert table.release("a") == 1
    assert table.check("a", EPOCH) is LeaseAnswer.ENDED
    for key in "ab":
        assert table.check(key, EPOCH - 1) is LeaseAnswer.WRONG_EPOCH


def test_a_table_without_incarnations_needs_no_epoch(clock: VirtualClock) -> None:
    table: LeaseTable[str, int] = LeaseTable(clock)
    table.grant("a", 1, 10)
    assert table.check("a") is LeaseAnswer.VALID
    assert table.renew("a", 20) is LeaseAnswer.VALID
    assert table.remaining_seconds("a") == 20


def test_only_an_open_lease_is_released(table: LeaseTable[str, int]) -> None:
    table.grant("a", 1, 10)
    table.release("a")
    with pytest.raises(KeyError):
        table.release("a")
    with pytest.raises(KeyError):
        table.release("b")
    assert table.check("b", EPOCH) is LeaseAnswer.UNKNOWN, "a failed release ends nothing"


def test_the_time_of_a_lease_is_over_exactly_after_its_seconds(
    table: LeaseTable[str, int], clock: VirtualClock
) -> None:
    table.grant("a", 1, 10)
    clock.advance(9.5)
    assert table.take_expired() == []
    assert table.remaining_seconds("a") == 0.5
    clock.advance(0.5)
    assert table.check("a", EPOCH) is LeaseAnswer.VALID, "until its owner takes it"
    assert table.take_expired() == [("a", 1)]
    assert table.check("a", EPOCH) is LeaseAnswer.ENDED
    assert (table.take_expired(), len(table)) == ([], 0)


def test_the_most_overdue_expires_first(table: LeaseTable[str, int], clock: VirtualClock) -> None:
    table.grant("late", 1, 3)
    table.grant("early", 2, 2)
    table.grant("open", 3, 9)
    clock.advance(5)
    assert table.remaining_seconds("late") == -2
    assert table.take_expired() == [("early", 2), ("late", 1)]
    assert dict(table) == {"open": 3}


def test_a_renewal_runs_from_now(table: LeaseTable[str, int], clock: VirtualClock) -> None:
    table.grant("a", 1, 10)
    clock.advance(8)
    assert table.renew("a", 10, EPOCH) is LeaseAnswer.VALID
    clock.advance(9)
    assert table.take_expired() == []
    clock.advance(1)
    assert table.take_expired() == [("a", 1)]


def test_a_renewal_that_is_not_valid_changes_nothing(
    table: LeaseTable[str, int], clock: VirtualClock
) -> None:
    table.grant("a", 1, 10)
    assert table.renew("a", 20, EPOCH + 1) is LeaseAnswer.WRONG_EPOCH
    assert table.renew("b", 20, EPOCH) is LeaseAnswer.UNKNOWN
    assert table.remaining_seconds("a") == 10
    table.release("a")
    assert table.renew("a", 20, EPOCH) is LeaseAnswer.ENDED
    clock.advance(30)
    assert table.take_expired() == []


def test_a_lease_without_seconds_never_expires(table: LeaseTable[str, int], clock: VirtualClock) -> None:
    table.grant("a", 1)
    clock.advance(1e9)
    assert table.take_expired() == []
    assert table.remaining_seconds("a") == inf


def test_a_grant_replaces_the_open_lease_of_its_key(table: LeaseTable[str, int], clock: VirtualClock) -> None:
    table.grant("a", 1, 10)
    clock.advance(5)
    table.grant("a", 2, 10)
    clock.advance(5)
    assert table.take_expired() == []
    assert dict(table) == {"a": 2}


def test_a_key_is_not_granted_again_while_its_end_is_remembered(table: LeaseTable[str, int]) -> None:
    for key in "abc":
        table.grant(key, 1, 10)
    for key in "abc":
        table.release(key)
    answers = [table.check(key, EPOCH) for key in "abc"]
    assert answers == [LeaseAnswer.UNKNOWN, LeaseAnswer.ENDED, LeaseAnswer.ENDED], "two are remembered"
    with pytest.raises(AssertionError, match="used once"):
        table.grant("b", 2, 10)
    table.grant("a", 2, 10)


def test_the_end_of_an_expired_lease_is_remembered_too(
    table: LeaseTable[str, int], clock: VirtualClock
) -> None:
    table.grant("a", 1, 10)
    clock.advance(10)
    table.take_expired()
    with pytest.raises(AssertionError, match="used once"):
        table.grant("a", 2, 10)


def test_a_table_may_remember_no_ends(clock: VirtualClock) -> None:
    table: LeaseTable[str, int] = LeaseTable(clock, remembered_ends=0)
    table.grant("a", 1, 10)
    table.release("a")
    assert table.check("a") is LeaseAnswer.UNKNOWN
    table.grant("a", 2, 10)
    table.check_integrity()


def test_many_ends_are_remembered_unless_said_otherwise(clock: VirtualClock) -> None:
    table: LeaseTable[int, None] = LeaseTable(clock)
    for key in range(4096 + 1):
        table.grant(key, None)
        table.release(key)
    assert [table.check(0), table.check(1)] == [LeaseAnswer.UNKNOWN, LeaseAnswer.ENDED]
    table.check_integrity()


class LeaseTableMachine(RuleBasedStateMachine):
    """The table against a model: a value and an end for each open key."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.table: LeaseTable[int, int] = LeaseTable(self.clock, remembered_ends=0)
        self.model: dict[int, tuple[int, float]] = {}

    keys = st.integers(0, 4)

    @rule(key=keys, value=st.integers(), seconds=st.floats(0, 20))
    def grant(self, key: int, value: int, seconds: float) -> None:
        self.table.grant(key, value, seconds)
        self.model[key] = (value, self.clock.now() + seconds)

    @rule(key=keys, seconds=st.floats(0, 20))
    def renew(self, key: int, seconds: float) -> None:
        answer = self.table.renew(key, seconds)
        assert (answer is LeaseAnswer.VALID) == (key in self.model)
        if key in self.model:
            self.model[key] = (self.model[key][0], self.clock.now() + seconds)

    @rule(key=keys)
    def release(self, key: int) -> None:
        if key in self.model:
            assert self.table.release(key) == self.model.pop(key)[0]

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def take_expired(self) -> None:
        late = {key: value for key, (value, end) in self.model.items() if end <= self.clock.now()}
        assert dict(self.table.take_expired()) == late
        self.model = {key: entry for key, entry in self.model.items() if key not in late}

    @invariant()
    def agrees(self) -> None:
        self.table.check_integrity()
        assert dict(self.table) == {key: value for key, (value, _) in self.model.items()}


TestLeaseTableMachine = LeaseTableMachine.TestCase
TestLeaseTableMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
