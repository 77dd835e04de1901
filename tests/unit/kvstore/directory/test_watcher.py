"""A replica that is fed by a watcher has what the directory has, whatever happened in between."""

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash
from llmserve.kvstore.directory.directory import Applied, BlockReport, Directory, Holder, KvTier
from llmserve.kvstore.directory.manager import KVManager, ReportStream
from llmserve.kvstore.directory.watcher import MOST_REMOVED, PIECE_BLOCKS, DirectoryUpdate, Watcher

X = Holder("x")


def _blocks(names: str) -> list[BlockHash]:
    return [BlockHash(name.encode()) for name in names]


def _numbered(numbers: Sequence[int]) -> list[BlockHash]:
    return [BlockHash(number.to_bytes(8, "big")) for number in numbers]


class Source:
    """A directory that feeds a watcher, as the KV manager does."""

    def __init__(self, most_removed: int = MOST_REMOVED) -> None:
        self.directory, self.wakes = Directory(), 0
        self._most_removed = most_removed
        self.sequences: dict[Holder, int] = {}
        self.watcher = self.watch()

    def watch(self) -> Watcher:
        self.watcher = Watcher(self.directory, self._wake, self._most_removed)
        return self.watcher

    def _wake(self) -> None:
        self.wakes += 1

    def report(
        self,
        stored: Sequence[BlockHash] = (),
        removed: Sequence[BlockHash] = (),
        holder: Holder = X,
        *,
        cleared: bool = False,
        snapshot: bool = False,
    ) -> None:
        sequence = self.sequences[holder] = self.sequences.get(holder, 0) + 1
        report = BlockReport(holder, 1, sequence, snapshot or sequence == 1, cleared, removed, stored)
        assert self.directory.apply(report) is Applied.APPLIED
        self.watcher.applied(report)

    def drop(self, holder: Holder) -> None:
        self.directory.drop(holder)
        self.sequences.pop(holder, None)
        self.watcher.dropped(holder)


def _told_all(watcher: Watcher) -> list[DirectoryUpdate]:
    told: list[DirectoryUpdate] = []
    while updates := watcher.take():
        assert sum(len(one.removed) + len(one.stored) for one in updates) <= PIECE_BLOCKS
        told += updates
    return told


def _apply(replica: Directory, told: DirectoryUpdate) -> None:
    if told.dropped:
        replica.drop(told.holder)
        return
    report = BlockReport(
        told.holder, 1, told.sequence, told.is_snapshot, removed=told.removed, stored=told.stored
    )
    assert replica.apply(report) is Applied.APPLIED


def _is_replica(replica: Directory, source: Source) -> bool:
    held = {report.holder: set(report.stored) for report in source.directory.snapshots()}
    return {report.holder: set(report.stored) for report in replica.snapshots()} == held


def test_first_all_in_pieces_and_then_what_changes() -> None:
    source = Source()
    source.report(_numbered(range(2 * PIECE_BLOCKS + 1)))
    source.report(_blocks("a"), holder=Holder("m/fast", KvTier.DRAM))
    told = _told_all(source.watch())
    assert max(len(one.stored) for one in told) == PIECE_BLOCKS
    assert [(one.holder.node, one.is_snapshot, one.sequence) for one in told] == [
        ("x", True, 1),
        ("m/fast", True, 1),  # a large holder does not hold up the others
        ("x", False, 2),
        ("x", False, 3),
    ]
    source.report(_blocks("b"), _numbered([0]))
    (told_then,) = _told_all(source.watcher)
    assert (told_then.sequence, told_then.stored, told_then.removed) == (4, (b"b",), tuple(_numbered([0])))
    assert source.watcher.take() == []


def test_what_changed_of_several_holders_is_told_together() -> None:
    source = Source()
    source.report(_blocks("a"))
    source.report(_blocks("b"), holder=Holder("y"))
    source.report(_blocks("c"), holder=Holder("m/fast", KvTier.DRAM))
    assert [told.stored for told in source.watcher.take()] == [(b"a",), (b"b",), (b"c",)]


def test_what_came_and_went_before_it_was_told_is_not_told() -> None:
    source = Source()
    source.report(_blocks("ab"))
    source.report(removed=_blocks("a"))
    (told,) = _told_all(source.watcher)
    assert (told.stored, told.removed) == ((b"b",), ())


def test_a_watcher_that_is_too_slow_is_told_all_of_the_holder_anew() -> None:
    source, replica = Source(most_removed=100), Directory()
    source.report(_blocks("a"))
    for told in _told_all(source.watcher):
        _apply(replica, told)
    for number in range(300):
        source.report(_numbered([number]))
        source.report(removed=_numbered([number]))
    (told,) = _told_all(source.watcher)
    assert told.is_snapshot
    assert len(told.removed) <= 100  # and not the 300 that went
    _apply(replica, told)
    assert _is_replica(replica, source)


def test_a_holder_that_is_dropped_and_comes_back() -> None:
    source, replica = Source(), Directory()
    source.report(_blocks("ab"))
    for told in _told_all(source.watcher):
        _apply(replica, told)
    source.drop(X)
    (told,) = _told_all(source.watcher)
    assert told.dropped
    source.report(_blocks("c"))
    source.drop(X)
    assert _told_all(source.watcher) == []  # nobody was told that it was back
    source.report(_blocks("c"))
    for told in _told_all(source.watcher):
        _apply(replica, told)
    assert _is_replica(replica, source)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_a_replica_is_equal_once_all_is_told(seed: int, steps: int) -> None:
    rng, source, replica = random.Random(seed), Source(most_removed=5), Directory()
    holders = [X, Holder("y"), Holder("m/fast", KvTier.DRAM)]
    for _ in range(steps):
        holder = rng.choice(holders)
        some, others = (rng.sample(_blocks("abcdefgh"), rng.randrange(5)) for _ in range(2))
        match rng.randrange(8):
            case 0:
                source.drop(holder)
            case 1:
                source.report(some, holder=holder, snapshot=True)
            case 2:
                source.report(some, holder=holder, cleared=True)
            case 3 | 4:
                for told in source.watcher.take():
                    _apply(replica, told)
            case _:
                source.report(some, others, holder)
    for told in _told_all(source.watcher):
        _apply(replica, told)
    assert _is_replica(replica, source)
    replica.check_integrity()


def test_the_manager_tells_its_watchers_until_they_leave() -> None:
    clock = VirtualClock(1.0)
    manager, connection, wakes = KVManager(clock), ReportStream(), []
    watcher = manager.watch(lambda: wakes.append(1))
    manager.report(connection, BlockReport(X, 1, 1, snapshot=True, stored=_blocks("a")), ())
    manager.report_tier(BlockReport(Holder("m/fast", KvTier.DRAM), 1, 1, True, stored=_blocks("b")))
    assert [told.stored for told in _told_all(watcher)] == [(b"a",), (b"b",)]
    assert len(wakes) == 2
    manager.disconnect(connection)
    clock.advance(60.0)
    manager.settle()  # the worker is written off
    (told,) = _told_all(watcher)
    assert (told.holder, told.dropped) == (X, True)
    manager.unwatch(watcher)
    manager.unwatch(watcher)
    manager.report_tier(BlockReport(Holder("m/fast", KvTier.DRAM), 1, 2, stored=_blocks("c")))
    assert watcher.take() == []
    assert manager.watchers == 0
