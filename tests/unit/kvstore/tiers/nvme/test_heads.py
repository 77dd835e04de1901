import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.nvme.heads import (
    FREE_HEAD,
    HEAD_BYTES,
    MAX_KEY_BYTES,
    RUNS_IN_HEAD,
    BlobHead,
    Place,
    PlaceTable,
    check_of,
    is_ours,
    joined,
    length_of,
    pack_head,
    pack_superblock,
    read_heads,
    read_superblock,
    slot_of,
    slots_for,
    slots_of,
    stored_pages,
)
from llmserve.kvstore.tiers.nvme.pages import PageRun

STAMP = 0x0123456789ABCDEF
KEY = BlobKey(b"key")


def place(slots: tuple[int, ...] = (0,), runs: int = 1) -> Place:
    return Place(slots, 17, 5000, 2**64 - 3, tuple(PageRun(10 * n + 1, n + 1) for n in range(runs)))


def written(*heads: tuple[int, BlobKey, Place], slots: int = 8) -> bytearray:
    raw = bytearray(HEAD_BYTES * slots)
    for head in heads:
        for slot, one in pack_head(*head, STAMP):
            raw[slot * HEAD_BYTES : (slot + 1) * HEAD_BYTES] = one
    return raw


def found(raw: bytearray, first: int = 0, stamp: int = STAMP) -> list[BlobHead]:
    return list(read_heads(memoryview(raw), first, stamp))


@pytest.mark.parametrize("key", [b"", b"k", b"\0" * 32, bytes(range(MAX_KEY_BYTES))])
@pytest.mark.parametrize("runs", [1, 2, RUNS_IN_HEAD])
def test_a_head_comes_back(key: bytes, runs: int) -> None:
    one = place((3,), runs)
    (head,) = found(written((7, BlobKey(key), one)))
    assert (head.sequence, head.key, head.part, head.place[0]) == (7, key, 0, 1)
    assert Place.unpack(head.place) == one
    assert (slot_of(head.place), slots_of(head.place), length_of(head.place)) == (3, (3,), 5000)


def test_the_place_in_memory_is_the_one_on_disk() -> None:
    (head,) = found(written((7, KEY, place((3,), 2))))
    assert head.place == place((3,), 2).packed()


@pytest.mark.parametrize("runs", [RUNS_IN_HEAD + 1, 3 * RUNS_IN_HEAD])
def test_many_pieces_take_several_slots(runs: int) -> None:
    slots = (5, 1, 3)[: slots_for(runs)]
    raw = written((7, KEY, place(slots, runs)), (8, BlobKey(b"other"), place((2,))))
    heads = list(joined(found(raw)))
    assert BlobHead(7, KEY, place(slots, runs).packed()) in heads
    assert Place.unpack(place(slots, runs).packed()) == place(slots, runs)
    assert slots_of(place(slots, runs).packed()) == slots
    assert len(heads) == 2


@pytest.mark.parametrize("lost", [5, 1, 3])
def test_a_blob_without_one_of_its_slots_is_not_there(lost: int) -> None:
    raw = written((7, KEY, place((5, 1, 3), 3 * RUNS_IN_HEAD)))
    raw[lost * HEAD_BYTES : (lost + 1) * HEAD_BYTES] = FREE_HEAD
    assert len(found(raw)) == 2
    assert list(joined(found(raw))) == []


@pytest.mark.parametrize(("runs", "slots"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_slots_for_pieces(runs: int, slots: int) -> None:
    assert slots_for(runs) == slots


@pytest.mark.parametrize(
    ("length", "header", "pages"), [(0, 0, 1), (1, 0, 1), (4096, 0, 1), (4096, 1, 2), (4095, 1, 1)]
)
def test_pages_of_a_blob(length: int, header: int, pages: int) -> None:
    assert stored_pages(length, header) == pages


def test_the_checksum_is_of_data_and_header() -> None:
    sums = {check_of(memoryview(data), header) for data, header in ((b"a", b"b"), (b"a", b"c"), (b"x", b"b"))}
    assert len(sums) == 3
    assert check_of(memoryview(b"ab"), b"c") == check_of(memoryview(b"a"), b"bc"), "lengths are in the head"


# -- what is no head


@given(at=st.integers(0, HEAD_BYTES - 1), mask=st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, mask: int) -> None:
    raw = written((7, KEY, place((1,))), (8, KEY, place((2,))))
    raw[HEAD_BYTES + at] ^= mask
    assert [head.sequence for head in found(raw)] == [8]


def test_a_head_of_another_file_or_slot_is_none() -> None:
    raw = written((7, KEY, place((1,))))
    assert found(raw, stamp=STAMP + 1) == []
    assert found(raw, first=1) == []
    assert len(found(raw[HEAD_BYTES:], first=1)) == 1
    assert found(bytearray(HEAD_BYTES * 4)) == []


# -- the superblock


def test_a_superblock_comes_back() -> None:
    assert read_superblock(pack_superblock(STAMP)) == STAMP
    assert len(pack_superblock(0)) == HEAD_BYTES


@given(at=st.integers(0, 23), mask=st.integers(1, 255))
def test_a_damaged_superblock_is_none(at: int, mask: int) -> None:
    raw = bytearray(pack_superblock(STAMP))
    raw[at] ^= mask
    assert read_superblock(bytes(raw)) is None


def test_what_is_ours() -> None:
    assert is_ours(pack_superblock(1))
    assert is_ours(b"")
    for foreign in (b"\0" * 512, b"short", b"LKV2" + bytes(100), b"x" * 512):
        assert not is_ours(foreign)
        assert read_superblock(foreign) is None


# -- the table of pages


def test_the_runs_of_all_blobs_by_page() -> None:
    places = [
        Place((1,), 0, 11, 2, (PageRun(50, 2),)),
        Place((2,), 0, 12, 2, (PageRun(70, 1), PageRun(3, 4))),
        Place((3,), 0, 13, 2, (PageRun(10, 5),)),
    ]
    table = PlaceTable.of([one.packed() for one in places])
    rows = list(zip(table.first.tolist(), table.end.tolist(), table.owner.tolist(), strict=True))
    assert rows == [(3, 7, 1), (10, 15, 2), (50, 52, 0), (70, 71, 1)]
    assert sorted(table.slots.tolist()) == [1, 2, 3]
    assert table.held_bytes == 11 + 12 + 13


def test_a_table_of_no_blobs_is_empty() -> None:
    table = PlaceTable.of([])
    assert [len(column) for column in (table.first, table.end, table.owner, table.slots)] == [0, 0, 0, 0]
    assert table.held_bytes == 0


def test_a_table_has_all_slots_of_a_blob_in_many_pieces() -> None:
    several = place((5, 1, 3), 3 * RUNS_IN_HEAD)
    table = PlaceTable.of([place((2,)).packed(), several.packed()])
    assert sorted(table.slots.tolist()) == [1, 2, 3, 5]
    assert table.held_bytes == 2 * 5000


def test_a_table_of_many_blobs() -> None:
    numbers = list(range(1000))
    random.Random(1).shuffle(numbers)
    places = [Place((n + 1,), 0, 1, 2, (PageRun(n, 1),)).packed() for n in numbers]
    table = PlaceTable.of(places)
    assert table.first.tolist() == list(range(1000))
    assert table.end.tolist() == list(range(1, 1001))
    assert [numbers[number] for number in table.owner] == table.first.tolist()
    assert table.slots.tolist() == [n + 1 for n in numbers]
    assert table.held_bytes == 1000
