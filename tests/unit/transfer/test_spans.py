import itertools
import struct
from contextlib import nullcontext
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Region, Spans
from llmserve.transfer.spans import (
    SPAN_BYTES,
    RegionTable,
    check_batch,
    check_bounds,
    coalesce,
    coalesce_pairs,
    pack_spans,
    split,
    unpack_spans,
    vectors,
)

Row = tuple[int, int, int]
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3)), max_size=12)


def spans(rows: list[Row]) -> Spans:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2])


def rows_of(spans: Spans) -> list[Row]:
    columns = (spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist())
    return list(zip(*columns, strict=True))


def bytes_of(spans: Spans) -> list[tuple[int, int]]:
    return [(region, offset + i) for region, offset, length in rows_of(spans) for i in range(length)]


@given(ROWS)
def test_coalescing_keeps_every_byte_in_order(rows: list[Row]) -> None:
    joined = coalesce(spans(rows))
    assert bytes_of(joined) == bytes_of(spans(rows))
    result = rows_of(joined)
    assert all(length > 0 for _, _, length in result)
    assert not any(a[0] == b[0] and a[1] + a[2] == b[1] for a, b in itertools.pairwise(result))


@given(ROWS)
def test_pairs_stay_pairs(rows: list[Row]) -> None:
    remote = [(1 - region, 2 * offset, length) for region, offset, length in rows]
    joined = coalesce_pairs(Batch(spans(rows), spans(remote)))
    assert joined.local.lengths.tolist() == joined.remote.lengths.tolist()
    assert bytes_of(joined.local) == bytes_of(spans(rows))
    assert bytes_of(joined.remote) == bytes_of(spans(remote))


def test_neighbours_are_joined() -> None:
    rows = [(0, 0, 4), (0, 4, 4), (0, 8, 0), (0, 8, 2), (1, 10, 1), (1, 12, 1)]
    assert rows_of(coalesce(spans(rows))) == [(0, 0, 10), (1, 10, 1), (1, 12, 1)]
    pair = coalesce_pairs(Batch(spans(rows[:2]), spans([(0, 0, 4), (0, 5, 4)])))
    assert len(pair.local.lengths) == 2


@given(ROWS, st.integers(1, 7))
def test_pieces_have_one_size_and_keep_every_byte_in_order(rows: list[Row], size: int) -> None:
    pieces = list(split(spans(rows), size))
    assert [byte for piece in pieces for byte in bytes_of(piece)] == bytes_of(spans(rows))
    assert all(piece.total_bytes == size for piece in pieces[:-1])
    assert all(0 < piece.total_bytes <= size for piece in pieces[-1:])
    assert all(length > 0 for piece in pieces for _, _, length in rows_of(piece))


@given(ROWS)
def test_bounds_are_those_of_the_regions(rows: list[Row]) -> None:
    lengths = (4, 6)
    inside = all(offset + length <= lengths[region] for region, offset, length in rows)
    expected = nullcontext() if inside else pytest.raises(TransferError, match="remote span")
    with expected:
        check_bounds(spans(rows), lengths, "remote")


def test_without_regions_nothing_is_inside() -> None:
    with pytest.raises(TransferError, match="local span 0 lies outside"):
        check_bounds(spans([(0, 0, 0)]), (), "local")
    check_bounds(spans([]), (), "local")


def test_malformed_arrays_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(TransferError, match="different shapes"):
        check_bounds(Spans(one, two, two), (9,), "local")
    with pytest.raises(TransferError, match="different lengths"):
        check_batch(Batch(spans([(0, 0, 1)]), spans([(0, 0, 2)])), (9,), (9,))


def test_a_table_knows_where_spans_start() -> None:
    table = RegionTable.of([Region(1000, 100), Region(5000, 50)])
    some = Spans(np.array([1, 0, 1]), np.array([7, 3, 0]), np.array([1, 2, 3]))
    assert table.lengths == (100, 50)
    assert table.starts(some).tolist() == [5007, 1003, 5000]
    assert vectors(table.starts(some), some.lengths).tolist() == [[5007, 1], [1003, 2], [5000, 3]]


@pytest.mark.parametrize(
    ("addresses", "lengths"), [([1], []), ([], [1]), (["x"], [1]), ([1 << 63], [1]), ([float("inf")], [1])]
)
def test_a_table_of_another_process_is_checked(addresses: list[Any], lengths: list[Any]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        RegionTable.parse(addresses, lengths)


def test_packed_spans_are_little_endian_columns() -> None:
    some = Spans(np.array([0, 1]), np.array([2, 1 << 40]), np.array([3, 4]))
    body = pack_spans(some)
    assert body == struct.pack("<6q", 0, 1, 2, 1 << 40, 3, 4)
    assert len(body) == 2 * SPAN_BYTES
    again = unpack_spans(body + b"padding", 2)
    assert [again.regions.tolist(), again.offsets.tolist(), again.lengths.tolist()] == [
        [0, 1],
        [2, 1 << 40],
        [3, 4],
    ]
