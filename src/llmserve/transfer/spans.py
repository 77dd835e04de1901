"""Arithmetic on spans that every transport needs: fences and coalescing, vectorised.

It runs before every transfer, of one piece or of thousands, so the cost of a numpy call counts.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Int64Array, Spans

BoolArray = npt.NDArray[np.bool_]


def check_batch(batch: Batch, local_lengths: Sequence[int], remote_lengths: Sequence[int]) -> None:
    """The fence of the near side: both halves lie in registered memory and have the same shape.
    The lengths are those of the regions of each side. Errors: TransferError."""
    check_bounds(batch.local, local_lengths, "local")
    check_bounds(batch.remote, remote_lengths, "remote")
    local, remote = batch.local.lengths, batch.remote.lengths
    if local is not remote and not (local.shape == remote.shape and _all(local == remote)):
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
    """The same for a single piece, at a fifth of the cost."""
    return (
        0 <= region < len(region_lengths) and offset >= 0 and 0 <= length <= region_lengths[region] - offset
    )


def coalesce(spans: Spans) -> Spans:
    """Joins neighbours in memory that follow each other in the list; drops empty spans."""
    if _is_whole(spans):
        return spans
    spans = _select(spans, spans.lengths > 0)
    return _joined(spans, _continues(spans))


def coalesce_pairs(batch: Batch) -> Batch:
    """The same for both halves at once: joins only where both continue."""
    if _is_whole(batch.local):
        return batch
    filled = batch.local.lengths > 0
    local, remote = _select(batch.local, filled), _select(batch.remote, filled)
    follows = _continues(local) & _continues(remote)
    return Batch(_joined(local, follows), _joined(remote, follows))


def split(spans: Spans, size: int) -> Iterator[Spans]:
    """Pieces of `size` bytes, the last one of what is left; spans are cut where a piece ends."""
    ends = np.cumsum(spans.lengths)
    starts = ends - spans.lengths
    for first in range(0, spans.total_bytes, size):
        after = first + size
        low, high = np.searchsorted(ends, first, "right"), np.searchsorted(starts, after, "left")
        begins, stops = np.maximum(starts[low:high], first), np.minimum(ends[low:high], after)
        offsets = spans.offsets[low:high] + (begins - starts[low:high])
        yield _select(Spans(spans.regions[low:high], offsets, stops - begins), stops > begins)


def _is_whole(spans: Spans) -> bool:
    """A single piece has no neighbours: the common case of a contiguous transfer."""
    return len(spans.lengths) == 1 and bool(spans.lengths[0] > 0)


def _all(mask: BoolArray) -> bool:
    """mask.all(), at a tenth of its cost for short arrays."""
    return bool(np.count_nonzero(mask) == len(mask))


def _select(spans: Spans, mask: BoolArray) -> Spans:
    if _all(mask):
        return spans
    return Spans(spans.regions[mask], spans.offsets[mask], spans.lengths[mask])


def _continues(spans: Spans) -> BoolArray:
    """Element i: span i + 1 begins where span i ends."""
    ends = spans.offsets[:-1] + spans.lengths[:-1]
    follows: BoolArray = (spans.regions[1:] == spans.regions[:-1]) & (spans.offsets[1:] == ends)
    return follows


def _joined(spans: Spans, follows: BoolArray) -> Spans:
    if not np.count_nonzero(follows):
        return spans
    starts: Int64Array = np.flatnonzero(np.concatenate(([True], ~follows)))
    lengths = np.add.reduceat(spans.lengths, starts)
    return Spans(spans.regions[starts], spans.offsets[starts], lengths)
