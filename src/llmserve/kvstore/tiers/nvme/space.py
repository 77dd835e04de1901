"""What an NVMe tier holds and where, and the room that is left. Pure; one loop owns it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from llmserve.kvstore.tiers.base import BlobKey, Usage
from llmserve.kvstore.tiers.nvme.heads import (
    HEAD_BYTES,
    PAGE,
    BlobHead,
    Place,
    PlaceTable,
    length_of,
    slots_for,
    stored_pages,
)
from llmserve.kvstore.tiers.nvme.pages import PageMap, PageRun

_HEADS_SHARE = 128  # one part in so many of the capacity is kept for heads: enough for blobs of 64 KiB
_DATA_STEPS, _LEAST_DATA_STEP, _MOST_DATA_STEP = 64, 1 << 20, 1 << 30
_HEADS_STEPS, _LEAST_HEADS_STEP, _MOST_HEADS_STEP = 1024, 64 << 10, 4 << 20


class Space:
    """Places of blobs. A place is taken, kept under its key when the blob is written, forgotten when the blob
    is removed, and given back when its head is erased and nobody reads it."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.heads_bytes = HEAD_BYTES  # of the file; its first slot is the superblock
        self.next_sequence = 0
        self.pages = PageMap(1)  # its first page is the superblock
        self._free_slots: list[int] = []
        self._places: dict[BlobKey, bytes] = {}
        self._readers: Counter[int] = Counter()  # by first slot
        self._left: dict[int, Place] = {}  # by slot: given back, but still being read

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: BlobKey) -> bool:
        return key in self._places

    # -- files

    @property
    def data_bytes(self) -> int:
        return self.pages.end * PAGE

    def data_growth_bytes(self, pages: int) -> int:
        """By how much the data file is to grow for a blob of so many pages; 0 when it must not."""
        room = (
            self.capacity_bytes - self.data_bytes - max(self.heads_bytes, self.capacity_bytes // _HEADS_SHARE)
        )
        step = _between(self.capacity_bytes // _DATA_STEPS, _LEAST_DATA_STEP, _MOST_DATA_STEP)
        return max(0, min(max(step, pages * PAGE), room)) // PAGE * PAGE

    def heads_growth_bytes(self) -> int:
        """By how much the heads file is to grow when no slot is free; 0 when it must not."""
        room = self.capacity_bytes - self.data_bytes - self.heads_bytes
        step = _between(self.capacity_bytes // _HEADS_STEPS, _LEAST_HEADS_STEP, _MOST_HEADS_STEP)
        return max(0, min(step, room)) // HEAD_BYTES * HEAD_BYTES

    def data_grew(self, size_bytes: int) -> None:
        self.pages.grow(size_bytes // PAGE)

    def heads_grew(self, size_bytes: int) -> None:
        first, end = self.heads_bytes // HEAD_BYTES, (self.heads_bytes + size_bytes) // HEAD_BYTES
        self._free_slots[:0] = range(end - 1, first - 1, -1)
        self.heads_bytes += size_bytes

    def restore(self, heads: Sequence[BlobHead], data_bytes: int, heads_bytes: int) -> None:
        """Starts from what is found in the files. heads: in the order of writing; no page in two of them."""
        table = PlaceTable.of([head.place for head in heads])
        end = data_bytes // PAGE
        starts, ends = np.append(1, table.end), np.append(table.first, end)
        gaps = starts != ends
        self.pages = PageMap(end, zip(starts[gaps].tolist(), ends[gaps].tolist(), strict=True))
        self.heads_bytes = heads_bytes
        is_free = np.ones(heads_bytes // HEAD_BYTES, np.bool_)
        is_free[0], is_free[table.slots] = False, False
        self._free_slots = np.flatnonzero(is_free)[::-1].tolist()
        self.next_sequence = max((head.sequence for head in heads), default=-1) + 1
        self._places = {head.key: head.place for head in heads}
        self.held_bytes = table.held_bytes

    # -- room

    @property
    def has_slot(self) -> bool:
        return bool(self._free_slots)

    def take(self, length: int, header_bytes: int, *, in_pieces: bool) -> Place | None:
        """Takes pages and slots. The check is still to be filled in. None: no run is long enough, or no slot
        is free; with in_pieces: there are not enough pages or slots for the pieces."""
        pages = stored_pages(length, header_bytes)
        run = self.pages.take_run(pages)
        runs = [run] if run else self.pages.take_pieces(pages) if in_pieces else []
        count = slots_for(len(runs))
        if not runs or count > len(self._free_slots):
            for taken in runs:
                self.pages.give(taken)
            return None
        slots = tuple(self._free_slots.pop() for _ in range(count))
        return Place(slots, header_bytes, length, 0, tuple(runs))

    def sequence(self) -> int:
        self.next_sequence += 1
        return self.next_sequence - 1

    def give(self, place: Place) -> None:
        """A place that is not kept is free again; when it is being read, after the last reader."""
        if place.slots[0] in self._readers:
            self._left[place.slots[0]] = place
            return
        self._free_slots += reversed(place.slots)
        for run in place.runs:
            self.pages.give(run)

    # -- blobs

    def keep(self, key: BlobKey, place: Place) -> None:
        self._places[key] = place.packed()
        self.held_bytes += place.length

    def find(self, key: BlobKey) -> Place | None:
        packed = self._places.get(key)
        return Place.unpack(packed) if packed else None

    def forget(self, key: BlobKey) -> Place | None:
        """The place of a blob, which is to be erased and given back."""
        packed = self._places.pop(key, None)
        if packed is None:
            return None
        place = Place.unpack(packed)
        self.held_bytes -= place.length
        return place

    def sizes(self) -> list[tuple[BlobKey, int]]:
        return [(key, length_of(packed)) for key, packed in self._places.items()]

    def pin(self, place: Place) -> None:
        """Somebody reads it: its pages are not used anew meanwhile."""
        self._readers[place.slots[0]] += 1

    def unpin(self, place: Place) -> None:
        self._readers[place.slots[0]] -= 1
        if not self._readers[place.slots[0]]:
            del self._readers[place.slots[0]]
            if left := self._left.pop(place.slots[0], None):
                self.give(left)

    def usage(self) -> Usage:
        slots = self.heads_bytes // HEAD_BYTES - len(self._free_slots)
        used = (self.pages.end - self.pages.free_pages) * PAGE + slots * HEAD_BYTES
        return Usage(len(self), self.held_bytes, used, self.capacity_bytes)

    def check_integrity(self) -> None:
        """Raises AssertionError unless every page and slot is free or of one blob, while no write runs."""
        places = [Place.unpack(packed) for packed in self._places.values()] + list(self._left.values())
        self.pages.check_integrity([PageRun(0, 1), *(run for place in places for run in place.runs)])
        slots = [*self._free_slots, *(slot for place in places for slot in place.slots)]
        assert sorted(slots) == list(range(1, self.heads_bytes // HEAD_BYTES))


def _between(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)
