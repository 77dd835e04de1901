from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest, TransferError
from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.lease_table import REMEMBERED_ENDS, LeaseAnswer
from llmserve.core.request import LeaseChange, LeaseState
from llmserve.engines.kv_transfer.leases import REMEMBERED_CHANGES, BlockLeases
from llmserve.transfer.devices.fake import LateMark

EPOCH = 7
R1, R2 = RequestId("r1"), RequestId("r2")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture
def table(clock: VirtualClock) -> Iterator[BlockLeases]:
    table = BlockLeases(EPOCH, 30.0, clock)
    yield table
    table.check_integrity()


def test_a_grant_pins_its_blocks(table: BlockLeases) -> None:
    lease = table.grant(R1, [3, 4, 9])
    assert (lease.request_id, lease.block_ids) == (R1, (3, 4, 9))
    assert (table.open_leases, table.leased_blocks, table.orphan_blocks) == (1, 3, 0)
    assert table.check(lease.lease_id, EPOCH) is LeaseAnswer.VALID
    assert table.take_ended() == frozenset()


def test_a_release_is_valid_once_and_frees_when_taken(table: BlockLeases) -> None:
    lease = table.grant(R1, [1, 2])
    assert table.release(lease.lease_id, EPOCH) is LeaseAnswer.VALID
    assert table.release(lease.lease_id, EPOCH) is LeaseAnswer.ENDED
    assert (table.leased_blocks, table.orphan_blocks) == (0, 2)
    assert table.take_ended() == {R1}
    assert table.take_ended() == frozenset()
    assert table.orphan_blocks == 0


def test_a_reader_begins_when_the_blocks_are_written(table: BlockLeases, clock: VirtualClock) -> None:
    mark = LateMark()
    lease = table.grant(R1, [1], written=mark)
    assert table.begin(lease.lease_id, EPOCH) is LeaseAnswer.UNKNOWN
    assert table.begin(lease.lease_id, EPOCH + 1) is LeaseAnswer.WRONG_EPOCH
    mark.ended.set()
    clock.advance(29)
    assert table.begin(lease.lease_id, EPOCH) is LeaseAnswer.VALID
    clock.advance(29)
    assert table.check(lease.lease_id, EPOCH) is LeaseAnswer.VALID, "it was renewed"


def test_blocks_whose_writing_failed_are_given_back(table: BlockLeases) -> None:
    lease = table.grant(R1, [1], written=LateMark("out of order"))
    with pytest.raises(TransferError, match="out of order"):
        table.begin(lease.lease_id, EPOCH)
    assert table.begin(lease.lease_id, EPOCH) is LeaseAnswer.ENDED
    assert table.take_ended() == {R1}


@pytest.mark.parametrize(("seconds", "answer"), [(29.9, LeaseAnswer.VALID), (30.0, LeaseAnswer.ENDED)])
def test_expiry_is_exact_and_needs_no_call_to_expire(
    table: BlockLeases, clock: VirtualClock, seconds: float, answer: LeaseAnswer
) -> None:
    lease = table.grant(R1, [1])
    clock.advance(seconds)
    assert table.release(lease.lease_id, EPOCH) is answer


def test_expired_blocks_are_orphans_until_taken(table: BlockLeases, clock: VirtualClock) -> None:
    table.grant(R1, [1, 2])
    clock.advance(31)
    table.expire()
    assert (table.open_leases, table.orphan_blocks, table.counters.expired) == (0, 2, 1)
    assert table.take_ended() == {R1}


def test_take_ended_expires_first(table: BlockLeases, clock: VirtualClock) -> None:
    table.grant(R1, [1])
    clock.advance(30)
    assert table.take_ended() == {R1}


def test_a_renewal_runs_from_now(table: BlockLeases, clock: VirtualClock) -> None:
    lease = table.grant(R1, [1])
    clock.advance(20)
    assert table.renew(lease.lease_id, EPOCH) is LeaseAnswer.VALID
    clock.advance(29)
    assert table.check(lease.lease_id, EPOCH) is LeaseAnswer.VALID
    clock.advance(1)
    assert table.renew(lease.lease_id, EPOCH) is LeaseAnswer.ENDED
    assert table.counters.renewed == 1


def test_another_epoch_is_refused_and_changes_nothing(table: BlockLeases) -> None:
    lease = table.grant(R1, [1])
    for act in (table.check, table.renew, table.release):
        assert act(lease.lease_id, EPOCH - 1) is LeaseAnswer.WRONG_EPOCH
    assert table.open_leases == 1
    assert (table.counters.renewed, table.counters.released) == (0, 0)


def test_a_lease_of_several_readers_ends_with_the_last(table: BlockLeases) -> None:
    lease_id = table.grant(R1, [1]).lease_id
    for reader in (2, 0, 2, 0):  # a reader that has lost the answer asks again
        assert table.release(lease_id, EPOCH, reader, 3) is LeaseAnswer.VALID
        table.check_integrity()
    assert table.open_leases == 1
    assert table.release(lease_id, EPOCH, 1, 3) is LeaseAnswer.VALID
    assert table.take_ended() == {R1}
    assert table.release(lease_id, EPOCH, 2, 3) is LeaseAnswer.ENDED
    table.check_integrity()


def test_one_reader_alone_may_end_it_for_all(table: BlockLeases) -> None:
    lease_id = table.grant(R1, [1]).lease_id
    table.release(lease_id, EPOCH, 0, 2)
    assert table.release(lease_id, EPOCH) is LeaseAnswer.VALID
    assert table.release(lease_id, EPOCH, 1, 2) is LeaseAnswer.ENDED


def test_readers_that_never_release_do_not_keep_it(table: BlockLeases, clock: VirtualClock) -> None:
    lease_id = table.grant(R1, [1]).lease_id
    table.release(lease_id, EPOCH, 0, 2)
    clock.advance(30)
    assert table.take_ended() == {R1}
    table.check_integrity()


def test_a_lease_that_never_was_is_unknown(table: BlockLeases) -> None:
    assert table.release(LeaseId("no"), EPOCH) is LeaseAnswer.UNKNOWN


@pytest.mark.parametrize("ended", [False, True])
def test_a_request_holds_one_lease_until_its_blocks_are_freed(table: BlockLeases, ended: bool) -> None:
    lease = table.grant(R1, [1])
    if ended:
        table.release(lease.lease_id, EPOCH)
    with pytest.raises(InvalidRequest, match="r1 holds a lease"):
        table.grant(R1, [2])


def test_a_request_may_lease_again_after_it_was_taken(table: BlockLeases) -> None:
    first = table.grant(R1, [1])
    table.release(first.lease_id, EPOCH)
    table.take_ended()
    second = table.grant(R1, [1])
    assert second.lease_id != first.lease_id
    assert table.check(first.lease_id, EPOCH) is LeaseAnswer.ENDED


def test_a_lease_id_is_never_used_twice(table: BlockLeases) -> None:
    table.grant(R1, [1], LeaseId("x"))
    with pytest.raises(InvalidRequest, match="used before"):
        table.grant(R2, [1], LeaseId("x"))
    table.release(LeaseId("x"), EPOCH)
    table.take_ended()
    with pytest.raises(InvalidRequest, match="used before"):
        table.grant(R1, [1], LeaseId("x"))


def test_no_blocks_no_lease(table: BlockLeases) -> None:
    with pytest.raises(InvalidRequest, match="no blocks"):
        table.grant(R1, [])


def test_the_owner_withdraws(table: BlockLeases) -> None:
    table.grant(R1, [1])
    assert table.withdraw(R1)
    assert not table.withdraw(R1)
    assert not table.withdraw(R2)
    assert table.take_ended() == {R1}


def test_ended_leases_are_forgotten_in_the_end(table: BlockLeases) -> None:
    ids = [table.grant(RequestId(f"q{i}"), [i]).lease_id for i in range(REMEMBERED_ENDS + 1)]
    for lease_id in ids:
        table.release(lease_id, EPOCH)
    answers = [table.check(lease_id, EPOCH) for lease_id in ids[:2]]
    assert answers == [LeaseAnswer.UNKNOWN, LeaseAnswer.ENDED]


def test_changes_are_taken_once_and_in_order(table: BlockLeases, clock: VirtualClock) -> None:
    lease = table.grant(R1, [1, 2])
    clock.advance(10)
    assert table.take_changes() == [LeaseChange(lease.lease_id, LeaseState.GRANTED, 2, 30.0)]
    other = table.grant(R2, [5])
    table.release(lease.lease_id, EPOCH)
    clock.advance(30)
    assert table.take_changes() == [
        LeaseChange(other.lease_id, LeaseState.GRANTED, 1, 30.0),
        LeaseChange(lease.lease_id, LeaseState.RELEASED, 2, 0.0),
        LeaseChange(other.lease_id, LeaseState.EXPIRED, 1, 0.0),
    ]
    assert table.take_changes() == []


def test_changes_that_nobody_takes_are_bounded(table: BlockLeases) -> None:
    ids = [table.grant(RequestId(f"q{i}"), [i]).lease_id for i in range(REMEMBERED_CHANGES + 1)]
    assert [change.lease_id for change in table.take_changes()] == ids[1:]


class LeaseMachine(RuleBasedStateMachine):
    """The table against a model that keeps every lease as (request, blocks, expiry, state)."""

    lease_ids = Bundle("lease_ids")

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.table = BlockLeases(EPOCH, 30.0, self.clock)
        self.model: dict[LeaseId, tuple[RequestId, int, float]] = {}  # open
        self.ended: dict[LeaseId, tuple[RequestId, int]] = {}  # not taken
        self.mirror: dict[LeaseId, LeaseState] = {}  # built from the reports only

    def _model_expire(self) -> None:
        for lease_id, (request, blocks, expiry) in list(self.model.items()):
            if expiry <= self.clock.now():
                del self.model[lease_id]
                self.ended[lease_id] = (request, blocks)

    @rule(target=lease_ids, number=st.integers(0, 5), blocks=st.integers(1, 4))
    def grant(self, number: int, blocks: int) -> object:
        self._model_expire()
        self.table.expire()
        request = RequestId(f"r{number}")
        held = {r for r, _, _ in self.model.values()} | {r for r, _ in self.ended.values()}
        if request in held:
            with pytest.raises(InvalidRequest):
                self.table.grant(request, range(blocks))
            return multiple()
        lease = self.table.grant(request, range(blocks))
        self.model[lease.lease_id] = (request, blocks, self.clock.now() + 30.0)
        return lease.lease_id

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(lease_id=lease_ids, epoch=st.sampled_from([EPOCH, EPOCH + 1]), renew=st.booleans())
    def message(self, lease_id: LeaseId, epoch: int, renew: bool) -> None:
        self._model_expire()
        answer = (self.table.renew if renew else self.table.release)(lease_id, epoch)
        assert (answer is LeaseAnswer.VALID) == (epoch == EPOCH and lease_id in self.model)
        if answer is not LeaseAnswer.VALID:
            return
        request, blocks, _ = self.model.pop(lease_id)
        if renew:
            self.model[lease_id] = (request, blocks, self.clock.now() + 30.0)
        else:
            self.ended[lease_id] = (request, blocks)

    @rule()
    def take(self) -> None:
        self._model_expire()
        assert self.table.take_ended() == {request for request, _ in self.ended.values()}
        self.ended.clear()

    @rule()
    def report(self) -> None:
        self._model_expire()
        self.mirror |= {change.lease_id: change.state for change in self.table.take_changes()}
        assert {i for i, s in self.mirror.items() if s is LeaseState.GRANTED} == set(self.model)

    @invariant()
    def agrees(self) -> None:
        self._model_expire()
        self.table.expire()
        self.table.check_integrity()
        assert self.table.leased_blocks == sum(blocks for _, blocks, _ in self.model.values())
        assert self.table.orphan_blocks == sum(blocks for _, blocks in self.ended.values())


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
