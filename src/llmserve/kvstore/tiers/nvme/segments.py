"""The segments there are, the room they take, and which of them is worth copying. Pure; one loop owns it."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.nvme.disk import SegmentFile
from llmserve.kvstore.tiers.nvme.layout import Contents, Demand, Entry, Grave, padded, record_bytes

_SUFFIX = ".kv"


def segment_name(stamp: int) -> str:
    return f"{stamp:016x}{_SUFFIX}"


def stamps_in(names: Iterable[str]) -> list[int]:
    """Of the names that are those of segments."""
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return [int(stem, 16) for stem in stems if len(stem) == 16 and set(stem) <= set("0123456789abcdef")]


@dataclass(eq=False, slots=True)
class Segment:
    """room_bytes: what the file takes. placed: records given a place, whether written or not. contents: of
    those that are whole; the entries only until it is sealed. writers: runs being written; readers: runs
    being read. is_stuck: it could not be copied or removed; it stays until the next start."""

    stamp: int
    file: SegmentFile
    room_bytes: int
    placed: Demand = field(default_factory=lambda: Demand(0))
    contents: Contents = field(default_factory=Contents)
    live_blobs: int = 0
    live_bytes: int = 0  # of their records
    is_sealed: bool = False
    is_stuck: bool = False
    writers: int = 0
    readers: int = 0
    is_unread: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.is_unread.set()

    def __repr__(self) -> str:
        return f"<Segment {self.stamp:016x} live={self.live_blobs} share={self.live_share:.2f}>"

    @property
    def live_share(self) -> float:
        return self.live_bytes / max(1, self.room_bytes)

    def fits(self, demand: Demand) -> bool:
        return self.placed.plus(demand).with_footer_bytes <= self.room_bytes

    def place(self, demand: Demand) -> int:
        """The offset of a run that fits."""
        offset = self.placed.size_bytes
        self.placed = self.placed.plus(demand)
        self.writers += 1
        return offset

    def pin(self) -> None:
        self.readers += 1
        self.is_unread.clear()

    def unpin(self) -> None:
        self.readers -= 1
        if self.readers == 0:
            self.is_unread.set()


class Place(NamedTuple):
    segment: Segment
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + record_bytes(self.length)


class Index:
    """Where each blob lies. Keeps the segments' live counts."""

    def __init__(self) -> None:
        self._places: dict[BlobKey, Place] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: BlobKey) -> bool:
        return key in self._places

    def __getitem__(self, key: BlobKey) -> Place:
        return self._places[key]

    def size_bytes(self, key: BlobKey) -> int:
        place = self._places.get(key)
        return place.length if place else 0

    def sizes(self) -> list[tuple[BlobKey, int]]:
        return [(key, place.length) for key, place in self._places.items()]

    def is_at(self, segment: Segment, entry: Entry) -> bool:
        return self._places.get(entry.key) == (segment, entry.offset, entry.length)

    def put(self, key: BlobKey, place: Place) -> None:
        """Adds it, or moves it there."""
        if key in self._places:
            self.take(key)
        self._places[key] = place
        self.held_bytes += place.length
        place.segment.live_blobs += 1
        place.segment.live_bytes += record_bytes(place.length)

    def take(self, key: BlobKey) -> Place:
        """Forgets it, and says where it was."""
        place = self._places.pop(key)
        self.held_bytes -= place.length
        place.segment.live_blobs -= 1
        place.segment.live_bytes -= record_bytes(place.length)
        return place


class Segments:
    """reserve_bytes: kept back from writers for the copying that makes room."""

    def __init__(self, capacity_bytes: int, segment_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.segment_bytes = segment_bytes
        self.reserve_bytes = segment_bytes
        self.used_bytes = 0
        self._by_stamp: dict[int, Segment] = {}

    def __iter__(self) -> Iterator[Segment]:
        return iter(list(self._by_stamp.values()))

    def __len__(self) -> int:
        return len(self._by_stamp)

    def add(self, segment: Segment) -> None:
        self._by_stamp[segment.stamp] = segment
        self.used_bytes += segment.room_bytes

    def resize(self, segment: Segment, room_bytes: int) -> None:
        self.used_bytes += room_bytes - segment.room_bytes
        segment.room_bytes = room_bytes

    def forget(self, segment: Segment) -> None:
        """Its file is gone, and its room is free."""
        del self._by_stamp[segment.stamp]
        self.used_bytes -= segment.room_bytes

    def size_of_next(self, demand: Demand) -> int:
        """Of a new segment that can take so much at once."""
        return max(self.segment_bytes, padded(demand.with_footer_bytes))

    def has_room_for(self, segment_bytes: int, *, upkeep: bool) -> bool:
        reserve = 0 if upkeep else self.reserve_bytes
        return self.used_bytes + segment_bytes + reserve <= self.capacity_bytes

    def emptiest(self, below: float) -> Segment | None:
        """The one to drop next: a sealed one with the smallest share of live bytes, if that is below this,
        or nothing in it lives."""
        offered = (
            segment for segment in self._by_stamp.values() if segment.is_sealed and not segment.is_stuck
        )
        segment = min(offered, key=lambda segment: segment.live_share, default=None)
        return segment if segment and (segment.live_share < below or not segment.live_blobs) else None

    def needed_graves(self, graves: Iterable[Grave], leaving: Segment | None = None) -> list[Grave]:
        """Those whose segment is still there, and stays."""
        gone = leaving.stamp if leaving else None
        return [grave for grave in graves if grave.stamp in self._by_stamp and grave.stamp != gone]
