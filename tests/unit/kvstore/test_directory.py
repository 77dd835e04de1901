from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.ids import BlockHash, WorkerId
from llmserve.kvstore.directory import Applied, BlockReport, Directory


def _blocks(names: str) -> list[BlockHash]:
    return [BlockHash(name.encode()) for name in names]


def _report(
    worker: str, sequence: int, stored: str = "", removed: str = "", *, epoch: int = 1, cleared: bool = False
) -> BlockReport:
    return BlockReport(
        WorkerId(worker), epoch, sequence, False, cleared, removed=_blocks(removed), stored=_blocks(stored)
    )


def _snapshot(worker: str, stored: str, *, sequence: int = 1, epoch: int = 1) -> BlockReport:
    return BlockReport(WorkerId(worker), epoch, sequence, snapshot=True, stored=_blocks(stored))


@pytest.fixture
def directory() -> Directory:
    return Directory()


def test_prefixes_of_each_worker(directory: Directory) -> None:
    directory.apply(_snapshot("x", "abc"))
    directory.apply(_snapshot("y", "abd"))
    directory.apply(_snapshot("z", "bcd"))  # not the first block: no prefix
    assert directory.prefix_blocks(_blocks("abcd")) == {"x": 3, "y": 2}
    assert directory.prefix_blocks(_blocks("ab")) == {"x": 2, "y": 2}
    assert directory.prefix_blocks(_blocks("q")) == {}
    assert directory.prefix_blocks([]) == {}
    assert len(directory) == 4


def test_changes_follow_the_snapshot(directory: Directory) -> None:
    directory.apply(_snapshot("x", "ab", sequence=7))
    assert directory.apply(_report("x", 8, stored="c", removed="a")) is Applied.APPLIED
    assert directory.blocks_of(WorkerId("x")) == 2
    assert directory.apply(_report("x", 9, stored="de", cleared=True)) is Applied.APPLIED
    assert directory.prefix_blocks(_blocks("de")) == {"x": 2}
    assert len(directory) == 2


def test_a_block_removed_and_stored_in_one_report_is_there(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    directory.apply(_report("x", 2, stored="a", removed="a"))
    assert directory.prefix_blocks(_blocks("a")) == {"x": 1}


def test_a_gap_asks_for_a_snapshot_once_and_heals(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    assert directory.apply(_report("x", 3, stored="c")) is Applied.RESYNC
    assert directory.apply(_report("x", 4, stored="d")) is Applied.IGNORED
    assert directory.prefix_blocks(_blocks("a")) == {"x": 1}  # the older truth stands
    assert directory.apply(_snapshot("x", "bcd", sequence=5)) is Applied.APPLIED
    assert directory.apply(_report("x", 6, removed="b")) is Applied.APPLIED
    assert directory.blocks_of(WorkerId("x")) == 2
    assert directory.apply(_report("x", 9)) is Applied.RESYNC  # the next gap asks again


def test_a_report_seen_before_changes_nothing(directory: Directory) -> None:
    directory.apply(_snapshot("x", "a"))
    directory.apply(_report("x", 2, stored="b"))
    assert directory.apply(_report("x", 2, removed="a")) is Applied.IGNORED
    assert directory.blocks_of(WorkerId("x")) == 2


def test_changes_before_any_snapshot_are_not_trusted(directory: Directory) -> None:
    assert directory.apply(_report("x", 1, stored="a")) is Applied.RESYNC
    assert len(directory) == 0


def test_a_newer_incarnation_drops_the_older(directory: Directory) -> None:
    directory.apply(_snapshot("x", "abc", epoch=1))
    assert directory.apply(_report("x", 2, stored="d", epoch=2)) is Applied.RESYNC
    assert len(directory) == 0
    directory.apply(_snapshot("x", "a", epoch=2))
    assert directory.apply(_snapshot("x", "bc", epoch=1)) is Applied.IGNORED
    assert directory.prefix_blocks(_blocks("a")) == {"x": 1}


def test_bits_of_workers_that_left_are_used_again(directory: Directory) -> None:
    for number in range(100):
        directory.apply(_snapshot(f"w{number}", "a"))
        directory.drop(WorkerId(f"w{number}"))
    directory.apply(_snapshot("x", "a"))
    assert directory.prefix_blocks(_blocks("a")) == {"x": 1}
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
            directory.drop(WorkerId(worker))
            model.pop(worker, None)
        elif kind == "snapshot" or worker not in model:
            directory.apply(_snapshot(worker, stored, sequence=number))
            model[worker] = set(stored)
        else:
            now = directory._holders[WorkerId(worker)].sequence
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
        assert directory.prefix_blocks(_blocks(prompt)) == {w: n for w, n in expected.items() if n}
