import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmserve.core.ids import ReservationId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer.push.fence import ReservationTable, Writes

EPOCH = 4
ID = ReservationId("r")


@pytest.fixture
def table() -> ReservationTable:
    made = ReservationTable(EPOCH)
    made.open(ID)
    return made


def test_blocks_are_free_at_once_when_nobody_was_let_in(table: ReservationTable) -> None:
    assert table.close(ID) is Writes.NEVER_BEGAN
    assert table.begin(ID, EPOCH, {}) is LeaseAnswer.ENDED, "and nobody ever will be"


def test_a_writer_that_was_let_in_may_go_on_until_it_says_otherwise(table: ReservationTable) -> None:
    assert table.begin(ID, EPOCH, {}) is LeaseAnswer.VALID
    assert table.close(ID) is Writes.MAY_GO_ON
    assert table.end(ID, EPOCH) is LeaseAnswer.ENDED


def test_a_writer_that_has_ended(table: ReservationTable) -> None:
    table.begin(ID, EPOCH, {})
    assert table.end(ID, EPOCH) is LeaseAnswer.VALID
    assert table.end(ID, EPOCH) is LeaseAnswer.VALID, "told again"
    assert table.begin(ID, EPOCH, {}) is LeaseAnswer.ENDED
    assert table.close(ID) is Writes.ENDED


def test_a_writer_that_ends_without_a_write_is_never_let_in(table: ReservationTable) -> None:
    table.end(ID, EPOCH)
    assert table.begin(ID, EPOCH, {}) is LeaseAnswer.ENDED


def test_only_one_writer_is_let_in(table: ReservationTable) -> None:
    table.begin(ID, EPOCH, {})
    assert table.begin(ID, EPOCH, {}) is LeaseAnswer.ENDED


def test_of_another_epoch_or_unheard_of(table: ReservationTable) -> None:
    assert table.begin(ID, EPOCH - 1, {}) is LeaseAnswer.WRONG_EPOCH
    assert table.end(ID, EPOCH + 1) is LeaseAnswer.WRONG_EPOCH
    assert table.begin(ReservationId("x"), EPOCH, {}) is LeaseAnswer.UNKNOWN
    assert table.close(ID) is Writes.NEVER_BEGAN


def test_the_fences_are_those_at_begin(table: ReservationTable) -> None:
    fences = {"tcp": 2}
    table.begin(ID, EPOCH, fences)
    fences["tcp"] = 3
    assert table.fences_at_begin(ID) == {"tcp": 2}


def test_ends_are_forgotten_at_last() -> None:
    table = ReservationTable(EPOCH, remembered_ends=2)
    for name in "abc":
        table.open(ReservationId(name))
        table.close(ReservationId(name))
    assert table.begin(ReservationId("a"), EPOCH, {}) is LeaseAnswer.UNKNOWN
    assert table.begin(ReservationId("b"), EPOCH, {}) is LeaseAnswer.ENDED


class Reservations(RuleBasedStateMachine):
    """However decode and prefill are interleaved: blocks are given back without a question only when no
    writer was let in, and none is let in afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ReservationTable(EPOCH)
        self.names: list[ReservationId] = []
        self.begun: set[ReservationId] = set()
        self.ended: set[ReservationId] = set()
        self.closed: set[ReservationId] = set()

    @rule()
    def open(self) -> None:
        self.names.append(ReservationId(str(len(self.names))))
        self.table.open(self.names[-1])

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        name = self._one(data)
        answer = self.table.begin(name, EPOCH, {})
        free = name in self.names and name not in self.begun | self.ended | self.closed
        assert (answer is LeaseAnswer.VALID) == free
        if free:
            self.begun.add(name)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = self._one(data)
        if self.table.end(name, EPOCH) is LeaseAnswer.VALID:
            self.ended.add(name)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = self._one(data)
        if name not in self.names or name in self.closed:
            return
        self.closed.add(name)
        writes = self.table.close(name)
        assert (writes is Writes.ENDED) == (name in self.ended)
        assert (writes is Writes.MAY_GO_ON) == (name in self.begun - self.ended)

    @invariant()
    def consistent(self) -> None:
        self.table.check_integrity()
        assert len(self.table) == len(set(self.names) - self.closed)

    def _one(self, data: st.DataObject) -> ReservationId:
        return data.draw(st.sampled_from([*self.names, ReservationId("unknown")]))


test_any_order = Reservations.TestCase
