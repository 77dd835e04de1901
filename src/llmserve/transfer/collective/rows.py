"""Packs many small spans into one tensor and unpacks them, with a few calls for thousands of spans.

Spans of one region whose offsets and lengths have a common divisor are rows of a table, and one indexed copy
moves them all. KV blocks are such rows, thousands of bytes wide.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from llmserve.transfer.base import Int64Array, Spans

_MIN_ROW_BYTES = 64  # copying narrower rows is slower than copying each span
_MIN_SPANS = 8


class Copier(Protocol):
    """Copies between a region and packed bytes, both contiguous uint8 tensors on one device."""

    def gather(self, region: Any, offsets: Int64Array, lengths: Int64Array, packed: Any) -> None: ...

    def scatter(self, packed: Any, region: Any, offsets: Int64Array, lengths: Int64Array) -> None: ...


class HostCopier:
    """Copies with numpy on the calling thread, without the GIL. torch would start a pool of spinning threads
    for each thread that copies."""

    def gather(self, region: Any, offsets: Int64Array, lengths: Int64Array, packed: Any) -> None:
        source, target = region.numpy(), packed.numpy()
        if width := _useful_width(offsets, lengths):
            rows = row_index(offsets, lengths, width)
            np.take(_table(source, width), rows, out=_table(target, width), mode="clip")
            return
        source, target = memoryview(source), memoryview(target)
        for at, offset, length in _columns(offsets, lengths):
            target[at : at + length] = source[offset : offset + length]

    def scatter(self, packed: Any, region: Any, offsets: Int64Array, lengths: Int64Array) -> None:
        source, target = packed.numpy(), region.numpy()
        if width := _useful_width(offsets, lengths):
            _table(target, width)[row_index(offsets, lengths, width)] = _table(source, width)
            return
        source, target = memoryview(source), memoryview(target)
        for at, offset, length in _columns(offsets, lengths):
            target[offset : offset + length] = source[at : at + length]


class DeviceCopier:
    """Copies with kernels on the current stream. It was not run on a GPU; tests run it on host tensors."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def gather(self, region: Any, offsets: Int64Array, lengths: Int64Array, packed: Any) -> None:
        width = row_width(offsets, lengths)
        rows = self._torch.from_numpy(row_index(offsets, lengths, width)).to(region.device)
        self._torch.index_select(_matrix(region, width), 0, rows, out=_matrix(packed, width))

    def scatter(self, packed: Any, region: Any, offsets: Int64Array, lengths: Int64Array) -> None:
        width = row_width(offsets, lengths)
        rows = self._torch.from_numpy(row_index(offsets, lengths, width)).to(region.device)
        _matrix(region, width).index_copy_(0, rows, _matrix(packed, width))


def gather(copier: Copier, regions: Sequence[Any], spans: Spans, packed: Any) -> None:
    for region, offsets, lengths, place in _runs(spans):
        copier.gather(regions[region], offsets, lengths, packed[place])


def scatter(copier: Copier, packed: Any, regions: Sequence[Any], spans: Spans) -> None:
    for region, offsets, lengths, place in _runs(spans):
        copier.scatter(packed[place], regions[region], offsets, lengths)


def row_width(offsets: Int64Array, lengths: Int64Array) -> int:
    """Returns the bytes of the widest rows that make up the spans, none of which is empty."""
    return int(np.gcd(np.gcd.reduce(offsets), np.gcd.reduce(lengths)))


def row_index(offsets: Int64Array, lengths: Int64Array, width: int) -> Int64Array:
    """Returns the rows of the spans in order."""
    counts = lengths // width
    before = np.cumsum(counts) - counts
    rows: Int64Array = np.repeat(offsets // width - before, counts) + np.arange(counts.sum(), dtype=np.int64)
    return rows


def _useful_width(offsets: Int64Array, lengths: Int64Array) -> int:
    """Returns 0 when copying span by span is faster."""
    width = row_width(offsets, lengths) if len(offsets) >= _MIN_SPANS else 0
    return width if width >= _MIN_ROW_BYTES else 0


def _runs(spans: Spans) -> Iterator[tuple[int, Int64Array, Int64Array, slice]]:
    """Yields each run of spans of one region: region, offsets, lengths, and its slice of the packed bytes."""
    ends = np.cumsum(spans.lengths)
    breaks = np.flatnonzero(np.diff(spans.regions)) + 1
    at = 0
    for first, after in zip([0, *breaks.tolist()], [*breaks.tolist(), len(ends)], strict=True):
        end = int(ends[after - 1])
        yield (
            int(spans.regions[first]),
            spans.offsets[first:after],
            spans.lengths[first:after],
            slice(at, end),
        )
        at = end


def _columns(offsets: Int64Array, lengths: Int64Array) -> Iterator[tuple[int, int, int]]:
    packed = np.cumsum(lengths) - lengths
    return zip(packed.tolist(), offsets.tolist(), lengths.tolist(), strict=True)


def _table(array: Any, width: int) -> Any:
    """Views each row as one opaque item, which numpy copies whole."""
    return array[: len(array) // width * width].view(f"V{width}")


def _matrix(tensor: Any, width: int) -> Any:
    return tensor[: len(tensor) // width * width].view(-1, width)
