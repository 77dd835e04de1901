"""Which ranges of a pack to ask for, and which of their bytes go where. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a pack that somebody wants. number: the caller's, of what it wants them for."""

    number: int
    offset: int
    length_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.length_bytes


@dataclass(slots=True)
class Range:
    """One request, and the extents that it brings, or brings a part of."""

    start: int
    end: int
    extents: list[Extent] = field(default_factory=list)


def plan_ranges(extents: Sequence[Extent], range_bytes: int, gap_bytes: int) -> list[Range]:
    """Neighbours go into one request, over gaps of up to gap_bytes, while it stays within range_bytes.
    An extent that is longer than that is cut into several requests."""
    ranges: list[Range] = []
    for extent in sorted(extents, key=lambda extent: extent.offset):
        if extent.length_bytes > range_bytes:
            ranges += _cut(extent, range_bytes)
            continue
        last = ranges[-1] if ranges else None
        if last and _joins(last, extent, range_bytes, gap_bytes):
            last.end = max(last.end, extent.end)
            last.extents.append(extent)
        else:
            ranges.append(Range(extent.offset, extent.end, [extent]))
    return ranges


def _joins(last: Range, extent: Extent, range_bytes: int, gap_bytes: int) -> bool:
    within = max(last.end, extent.end) - last.start <= range_bytes
    return within and extent.offset >= last.start and extent.offset - last.end <= gap_bytes


def _cut(extent: Extent, range_bytes: int) -> list[Range]:
    """Into equal parts."""
    parts = -(-extent.length_bytes // range_bytes)
    cuts = [extent.offset + extent.length_bytes * part // parts for part in range(parts + 1)]
    return [Range(start, end, [extent]) for start, end in pairwise(cuts)]
