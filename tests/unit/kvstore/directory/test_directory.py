from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.ids import BlockHash
from llmserve.kvstore.directory import directory as directories
from llmserve.kvstore.directory.directory import Applied, BlockReport, Directory, Holder, KvTier


def _prefix(directory: Directory, names: str) -> dict[str, int]:
    return {holder.node: blocks for holder, blocks in directory.prefix_blocks(_blocks(names)).items()}


def _blocks(names: str) -> list[BlockHash]:
    return [BlockHash(name.encode()) for name in names]


def _report(
    worker: str, sequence: int, stored: str = "", removed: str = "", *, epoch: int = 1, cleared: bool = False
) -> BlockReport:
    return BlockReport(
        Holder(worker), epoch, sequence, False, cleared, removed=_blocks(removed), stored=_blocks(stored)
    )


def _snapshot(worker: str, stored: str, *, sequence: int = 1, epoch: int = 1) -> BlockReport:
    return BlockReport(Holder(worker), epoch, sequence, snapshot=True, stored=_blocks(stored))


@pytest.fixture
def directory() -> Directory:
    return Directory()


def test_prefixes_of_each_worker(directory: Directory) -> None:
    directory.apply(_snapshot("x", "abc"))
    directory.apply(_snapshot("y", "abd"))
    directory.apply(_snapshot("z", "bcd"))  # not the first block: no prefix
    assert _prefix(directory, "abcd") == {"x": 3, "y": 2}
    assert _prefix(directory, "ab") == {"x": 2, "y": 2}
    assert _prefix(directory, "q") == {}
    assert _prefix(directory, "") == {}
    assert len(directory) == 4


def test_changes_follow_the_snapshot(directory: Directory) -> None:
    directory.apply(_snapshot("x", "ab", sequence=7))
    assert directory.apply(_report("x", 8, stored="c", removed="a")) is Applied.APPLIED
    assert directory.blocks_of(Holder("x")) == 2
    assert directory.apply(_report("x", 9, stored="de", cleared=True)) is Applied.APPLIED
    assert _prefix(directory, "de") == {"x": 2}
    assert len(directory) == 2


def test_a_block_removed_and_stored_in_one_report_is_there(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    directory.apply(_report("x", 2, stored="a", removed="a"))
    assert _prefix(directory, "a") == {"x": 1}


def test_a_gap_asks_for_a_snapshot_once_and_heals(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    assert directory.apply(_report("x", 3, stored="c")) is Applied.RESYNC
    assert directory.apply(_report("x", 4, stored="d")) is Applied.IGNORED
    assert _prefix(directory, "a") == {"x": 1}  # the older truth stands
    assert directory.apply(_snapshot("x", "bcd", sequence=5)) is Applied.APPLIED
    assert directory.apply(_report("x", 6, removed="b")) is Applied.APPLIED
    assert directory.blocks_of(Holder("x")) == 2
    assert directory.apply(_report("x", 9)) is Applied.RESYNC  # the next gap asks again


def test_a_report_seen_before_changes_nothing(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    directory.apply(_report("x", 2, stored="b"))
    assert directory.apply(_report("x", 2, removed="a")) is Applied.IGNORED
    assert directory.blocks_of(Holder("x")) == 2


def test_changes_before_any_snapshot_are_not_trusted(directory: Directory) -> None:
    assert directory.apply(_report("x", 1, stored="a")) is Applied.RESYNC
    assert len(directory) == 0


def test_a_newer_incarnation_drops_the_older(directory: Directory) -> None:
    directory.apply(_snapshot("x", "abc", epoch=1))
    assert directory.apply(_report("x", 2, stored="d", epoch=2)) is Applied.RESYNC
    assert len(directory) == 0
    directory.apply(_snapshot("x", "a", epoch=2))
    assert directory.apply(_snapshot("x", "bc", epoch=1)) is Applied.IGNORED
    assert _prefix(directory, "a") == {"x": 1}


def test_bits_of_workers_that_left_are_used_again(directory: Directory) -> None:
    for number in range(100):
        directory.apply(_snapshot(f"w{number}", "a"))
        directory.drop(Holder(f"w{number}"))
    directory.apply(_snapshot("x", "a"))
    assert _prefix(directory, "a") == {"x": 1}
    assert max(directory._masks.values()) == 1


_CHANGE = st.tuples(
    st.sampled_from("xyz"), st.sampled_from(("snapshot", "change", "drop")), st.text("abcd"), st.text("abcd")
)


@given(st.lists(_CHANGE, max_size=20))
@settings(deadline=None, database=None)
def test_equals_a_plain_dict_of_sets(changes: Sequence[tuple[str, str, str, str]]) -> None:
    directory, model = Directory(), dict[str, set[str]]()
    for number, (worker, kind, stored, removed) in enumerate(changes):
        if kind == "drop":
            directory.drop(Holder(worker))
            model.pop(worker, None)
        elif kind == "snapshot" or worker not in model:
            directory.apply(_snapshot(worker, stored, sequence=number))
            model[worker] = set(stored)
        else:
            now = directory._held[Holder(worker)].sequence
            assert now is not None
            directory.apply(_report(worker, now + 1, stored, removed))
            model[worker] = model[worker] - set(removed) | set(stored)
        directory.check_integrity()
        assert len(directory) == len(set().union(*model.values()))
    for prompt in ("abcd", "ba", "dcba"):
        expected = {
            w: next((i for i, c in enumerate(prompt) if c not in has), len(prompt))
            for w, has in model.items()
        }
        assert _prefix(directory, prompt) == {w: n for w, n in expected.items() if n}


def _tier_snapshot(holder: Holder, names: str) -> BlockReport:
    return BlockReport(holder, 1, 1, snapshot=True, stored=_blocks(names))


def test_masks_tell_who_holds_a_block(directory: Directory) -> None:
    worker, dram, nvme = Holder("x"), Holder("m", KvTier.DRAM), Holder("m", KvTier.NVME)
    for holder, names in ((worker, "ab"), (dram, "abc"), (nvme, "cd")):
        directory.apply(_tier_snapshot(holder, names))
    a, b, c, d = map(directory.mask, _blocks("abcd"))
    assert a == b
    assert [set(directory.holders(mask)) for mask in (a, c, d)] == [{worker, dram}, {dram, nvme}, {nvme}]
    assert directory.mask(_blocks("q")[0]) == 0
    assert directory.holders(directory.tier_mask(KvTier.DRAM)) == (dram,)
    assert set(directory.hashes_of(nvme)) == set(_blocks("cd"))
    directory.drop(dram)
    assert (directory.tier_mask(KvTier.DRAM), directory.hashes_of(dram)) == (0, ())


def test_tiers_of_one_node_are_apart(directory: Directory) -> None:
    dram, nvme = Holder("m", KvTier.DRAM), Holder("m", KvTier.NVME)
    for holder in (dram, nvme):
        directory.apply(_tier_snapshot(holder, "ab"))
    directory.drop(dram)
    assert directory.prefix_blocks(_blocks("ab")) == {nvme: 2}
    assert (directory.blocks_of(dram), directory.blocks_of(nvme)) == (0, 2)


def test_memory_is_bounded() -> None:
    directory = Directory(most_blocks=3)
    directory.apply(_snapshot("x", "abcde"))
    assert len(directory) == 3
    assert _prefix(directory, "abcde") == {"x": 3}
    directory.apply(_snapshot("y", "ab"))  # known blocks are always noted
    assert _prefix(directory, "ab") == {"x": 3 - 1, "y": 2}
    directory.apply(_report("x", 2, stored="d", removed="ce"))  # e was never noted
    assert directory.blocks_of(Holder("x")) == 3
    directory.check_integrity()


def test_a_snapshot_after_a_gap_changes_only_what_differs(directory: Directory) -> None:
    directory.apply(_snapshot("x", "abc"))
    directory.apply(_report("x", 5))
    directory.apply(_snapshot("x", "bcd", sequence=6))
    assert _prefix(directory, "bcd") == {"x": 3}
    assert _prefix(directory, "a") == {}
    directory.check_integrity()


@given(st.lists(st.tuples(_CHANGE, st.booleans()), max_size=20))
@settings(deadline=None, database=None)
def test_a_replica_follows_and_heals(changes: Sequence[tuple[tuple[str, str, str, str], bool]]) -> None:
    """It misses some reports, notices at the next one, and is right again after a snapshot."""
    source, replica = Directory(), Directory()
    for holder in "xyz":
        source.apply(_snapshot(holder, ""))
    for snapshot in source.snapshots():
        assert replica.apply(snapshot) is Applied.APPLIED
    sequences = dict.fromkeys("xyz", 1)
    for (holder, _, stored, removed), lost in changes:
        sequences[holder] += 1
        report = _report(holder, sequences[holder], stored, removed)
        assert source.apply(report) is Applied.APPLIED
        if not lost and replica.apply(report) is Applied.RESYNC:
            (healing,) = (each for each in source.snapshots() if each.holder == report.holder)
            assert replica.apply(healing) is Applied.APPLIED
    for snapshot in source.snapshots():
        replica.apply(snapshot)
    assert {(s.holder, s.sequence, frozenset(s.stored)) for s in source.snapshots()} == {
        (s.holder, s.sequence, frozenset(s.stored)) for s in replica.snapshots()
    }
    replica.check_integrity()


def test_a_holder_that_needs_a_snapshot_gives_none(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    directory.apply(_snapshot("y", "b"))
    directory.apply(_report("x", 9))
    assert [snapshot.holder for snapshot in directory.snapshots()] == [Holder("y")]


def test_many_holders_share_their_masks(directory: Directory) -> None:
    for number in range(40):
        directory.apply(_snapshot(f"w{number}", "abcd"))
    assert len({id(mask) for mask in directory._masks.values()}) == 1


def test_shared_masks_are_bounded(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_MOST_SHARED_MASKS", 4)
    for number in range(8):
        directory.apply(_snapshot(f"w{number}", "abcd"[: 1 + number % 4]))
        assert len(directory._shared) <= 4
    directory.check_integrity()


def test_a_bit_that_was_given_back_is_used_again(directory: Directory) -> None:
    for name in "xyz":
        directory.apply(_snapshot(name, "a"))
    directory.drop(Holder("y"))
    directory.apply(_snapshot("w", "a"))
    assert directory.mask(_blocks("a")[0]) == 0b111
