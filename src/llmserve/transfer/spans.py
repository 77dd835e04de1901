"""Vectorised arithmetic on spans that every transport needs: bounds checks, addresses, coalescing, cutting.

It runs before every transfer of one piece or of thousands, so the cost of a numpy call counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Int64Array, Region, Spans, Transport

BoolArray = npt.NDArray[np.bool_]
SPAN_BYTES = 24  # of a packed span
_WIRE_NUMBER = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class RegionTable:
    """The addresses and lengths of the regions of one side, in the order of registration."""

    addresses: Int64Array
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, regions: Sequence[Region]) -> "RegionTable":
        return cls.parse([one.address for one in regions], [one.length_bytes for one in regions])

    @classmethod
    def parse(cls, addresses: Sequence[int], lengths: Sequence[int]) -> "RegionTable":
        """Errors: ValueError for what no table has."""
        if len(addresses) != len(lengths):
            raise ValueError("addresses and lengths of different numbers of regions")
        return cls(np.array(addresses, np.int64), tuple(lengths))

    def starts(self, spans: Spans) -> Int64Array:
        """Returns the addresses of spans whose bounds have been checked."""
        starts: Int64Array = self.addresses[spans.regions] + spans.offsets
        return starts


def check_reach(transport: Transport, regions: Sequence[Region]) -> None:
    """Checks that a transport reaches the memory of all regions. Errors: TransferError."""
    for region in regions:
        if not transport.reaches(region.memory):
            raise TransferError(f"{transport.name}: does not reach {region.memory}")


def vectors(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """Returns the kernel's struct iovec of each piece: shape [n, 2], address and length."""
    rows = np.empty((len(starts), 2), np.int64)
    rows[:, 0], rows[:, 1] = starts, lengths
    return rows


def pack_spans(spans: Spans) -> bytes:
    """Packs spans for the network: three little-endian int64 arrays, regions, offsets and lengths."""
    numbers = np.concatenate((spans.regions, spans.offsets, spans.lengths))
    return numbers.astype(_WIRE_NUMBER, copy=False).tobytes()


def unpack_spans(body: bytes | bytearray, count: int) -> Spans:
    """Unpacks `count` spans; body: at least `count * SPAN_BYTES` bytes."""
    numbers = np.frombuffer(body, _WIRE_NUMBER, 3 * count).astype(np.int64, copy=False)
    regions, offsets, lengths = numbers.reshape(3, count)
    return Spans(regions, offsets, lengths)


def check_batch(batch: Batch, local_lengths: Sequence[int], remote_lengths: Sequence[int]) -> None:
    """Checks that both halves lie in registered memory and have the same shape. local_lengths,
    remote_lengths: the lengths of the regions of each side. Errors: TransferError."""
    check_bounds(batch.local, local_lengths, "local")
    check_bounds(batch.remote, remote_lengths, "remote")
    local, remote = batch.local.lengths, batch.remote.lengths
    if local is not remote and local.tobytes() != remote.tobytes():  # at a fifth of the cost of ==
        raise TransferError("local and remote spans have different lengths")


def check_bounds(spans: Spans, region_lengths: Sequence[int], side: str) -> None:
    """Errors: TransferError naming the first span that lies outside its region."""
    regions, offsets, lengths = spans.regions, spans.offsets, spans.lengths
    if not regions.shape == offsets.shape == lengths.shape or regions.ndim != 1:
        raise TransferError(f"malformed {side} spans: arrays of different shapes")
    if len(lengths) == 1 and _holds(region_lengths, int(regions[0]), int(offsets[0]), int(lengths[0])):
        return
    room = np.array((*region_lengths, -1), np.int64).take(regions, mode="clip")
    free = room - offsets
    inside = (regions | offsets | lengths | free | (free - lengths)) >= 0  # none of them is negative
    if not _all(inside):
        bad = int(np.argmin(inside))
        where = f"region {regions[bad]}, offset {offsets[bad]}, length {lengths[bad]}"
        raise TransferError(f"{side} span {bad} lies outside registered memory ({where})")


def _holds(region_lengths: Sequence[int], region: int, offset: int, length: int) -> bool:
    """Checks a single piece, at a fifth of the cost."""
    return (
        0 <= region < len(region_lengths) and offset >= 0 and 0 <= length <= region_lengths[region] - offset
    )


def coalesce(spans: Spans) -> Spans:
    """Joins spans that follow each other both in the list and in memory; drops empty spans."""
    if _is_whole(spans):
        return spans
    spans = _select(spans, spans.lengths > 0)
    return _joined(spans, _continues(spans))


def coalesce_pairs(batch: Batch) -> Batch:
    """Coalesces both halves alike: joins two pieces only where both halves continue."""
    if _is_whole(batch.local):
        return batch
    filled = batch.local.lengths > 0
    local, remote = _select(batch.local, filled), _select(batch.remote, filled)
    follows = _continues(local) & _continues(remote)
    return Batch(_joined(local, follows), _joined(remote, follows))


def concatenated(batches: Sequence[Batch]) -> Batch:
    """Returns the pieces of all batches, of which there is at least one, as one batch."""
    if len(batches) == 1:
        return batches[0]
    return Batch(_chained([one.local for one in batches]), _chained([one.remote for one in batches]))


def _chained(parts: Sequence[Spans]) -> Spans:
    return Spans(
        np.concatenate([part.regions for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def split(spans: Spans, size: int) -> Iterator[Spans]:
    """Yields pieces of `size` bytes, the last one of what is left. Spans are cut where a piece ends."""
    ends = np.cumsum(spans.lengths)
    starts = ends - spans.lengths
    for first in range(0, spans.total_bytes, size):
        after = first + size
        low, high = np.searchsorted(ends, first, "right"), np.searchsorted(starts, after, "left")
        begins, stops = np.maximum(starts[low:high], first), np.minimum(ends[low:high], after)
        offsets = spans.offsets[low:high] + (begins - starts[low:high])
        yield _select(Spans(spans.regions[low:high], offsets, stops - begins), stops > begins)


def _is_whole(spans: Spans) -> bool:
    """A single piece has no neighbours. That is the common case of a contiguous transfer."""
    return len(spans.lengths) == 1 and bool(spans.lengths[0] > 0)


def _all(mask: BoolArray) -> bool:
    """Returns mask.all(), at a tenth of its cost for short arrays."""
    return bool(np.count_nonzero(mask) == len(mask))


def _select(spans: Spans, mask: BoolArray) -> Spans:
    if _all(mask):
        return spans
    return Spans(spans.regions[mask], spans.offsets[mask], spans.lengths[mask])


def _continues(spans: Spans) -> BoolArray:
    """Element i says whether span i + 1 begins where span i ends."""
    ends = spans.offsets[:-1] + spans.lengths[:-1]
    follows: BoolArray = (spans.regions[1:] == spans.regions[:-1]) & (spans.offsets[1:] == ends)
    return follows


def _joined(spans: Spans, follows: BoolArray) -> Spans:
    if not np.count_nonzero(follows):
        return spans
    starts: Int64Array = np.flatnonzero(np.concatenate(([True], ~follows)))
    lengths = np.add.reduceat(spans.lengths, starts)
    return Spans(spans.regions[starts], spans.offsets[starts], lengths)
