import hypothesis.strategies as st
import pytest
from hypothesis import given

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.nvme.layout import (
    PAGE,
    Contents,
    Damaged,
    Demand,
    Entry,
    Grave,
    Head,
    Kind,
    pack_contents,
    padded,
    read_head,
    unpack_contents,
    write_head,
)

STAMP = 0x1234_5678_9ABC_DEF0
WORD = st.integers(0, 2**64 - 1)
KEY = st.binary(max_size=64).map(BlobKey)


def page_of(head: Head, stamp: int = STAMP) -> bytearray:
    page = bytearray(b"\xff" * PAGE)
    write_head(memoryview(page), head, stamp)
    return page


@given(
    st.builds(Head, st.sampled_from(Kind), KEY, st.binary(max_size=1024), WORD, WORD, WORD),
    WORD,
)
def test_a_head_is_read_as_it_was_written(head: Head, stamp: int) -> None:
    assert read_head(memoryview(page_of(head, stamp)), stamp) == head


def test_every_changed_bit_of_a_head_is_damage() -> None:
    page = page_of(Head(Kind.BLOB, BlobKey(b"k" * 32), b"h" * 100, 4096, 5000, 17))
    for at in range(PAGE):
        page[at] ^= 1 << at % 8
        with pytest.raises(Damaged):
            read_head(memoryview(page), STAMP)
        page[at] ^= 1 << at % 8


def test_a_head_of_another_segment_is_damage() -> None:
    page = page_of(Head(Kind.BLOB, BlobKey(b"k"), b"", 0, 1, 1))
    with pytest.raises(Damaged):
        read_head(memoryview(page), STAMP + 1)


@pytest.mark.parametrize("length", [0, 1, PAGE - 1])
def test_less_than_a_page_is_damage(length: int) -> None:
    with pytest.raises(Damaged):
        read_head(memoryview(page_of(Head(Kind.BLOB, BlobKey(b"k"), b"", 0, 1, 1)))[:length], STAMP)


@given(st.lists(st.builds(Entry, KEY, WORD, WORD)), st.lists(st.builds(Grave, WORD, WORD)))
def test_contents_are_read_as_they_were_written(entries: list[Entry], graves: list[Grave]) -> None:
    contents = Contents(entries, graves)
    packed = pack_contents(contents)
    assert unpack_contents(packed) == contents
    promised = Demand(0, len(entries), len(graves)).with_footer_bytes
    assert PAGE + padded(len(packed)) <= promised, "a footer fits the room kept for it"
