import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.digest import digests

MEMORY = [
    np.random.default_rng(region).integers(0, 256, size, np.uint8) for region, size in ((0, 5000), (1, 64))
]
REGIONS = [Region(memory.ctypes.data, memory.nbytes) for memory in MEMORY]
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 32), st.integers(0, 32)), max_size=20)


def spans(*rows: tuple[int, int, int]) -> Spans:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2])


@given(ROWS)
def test_each_span_has_the_digest_of_its_bytes(rows: list[tuple[int, int, int]]) -> None:
    rows.append((0, 3, 4997))
    result = digests(REGIONS, spans(*rows))
    assert result.dtype == np.uint64
    expected = [xxhash.xxh3_64_intdigest(MEMORY[r][o : o + n].tobytes()) for r, o, n in rows]
    assert result.tolist() == expected


def test_the_digest_of_a_known_text_never_changes() -> None:
    """Both ends of a transfer may run different versions of the library."""
    memory = np.frombuffer(b"xxxThe digest of a block", np.uint8)
    known = digests([Region(memory.ctypes.data, memory.nbytes)], spans((0, 3, 21)))
    assert known.tolist() == [18346422621367462325]


@pytest.mark.parametrize("at", [0, 1, 2500, 4999])
def test_a_flipped_bit_shows(at: int) -> None:
    memory = MEMORY[0].copy()
    region, whole = [Region(memory.ctypes.data, memory.nbytes)], spans((0, 0, 5000))
    before = digests(region, whole)
    memory[at] ^= 1
    assert digests(region, whole) != before


def test_no_piece_is_copied() -> None:
    memory = np.ones(8 << 20, np.uint8)
    region, whole = [Region(memory.ctypes.data, memory.nbytes)], spans((0, 0, 8 << 20), (0, 1, 7 << 20))
    tracemalloc.start()
    try:
        digests(region, whole)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_regions_may_be_empty_and_spans_none() -> None:
    empty = [Region(0, 0), *REGIONS]
    assert digests(empty, spans()).tolist() == []
    assert digests(empty, spans((0, 0, 0))).tolist() == [xxhash.xxh3_64_intdigest(b"")]


@pytest.mark.parametrize("row", [(2, 0, 1), (-1, 0, 1), (0, 5000, 1), (0, -1, 1), (1, 0, 65)])
def test_spans_outside_are_refused(row: tuple[int, int, int]) -> None:
    with pytest.raises(TransferError, match="local span 1 lies outside"):
        digests(REGIONS, spans((0, 0, 1), row))
