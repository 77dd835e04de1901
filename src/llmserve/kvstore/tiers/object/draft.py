"""A pack in the making: a buffer of records, and their entries."""

import asyncio
from dataclasses import dataclass

import numpy as np

from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult
from llmserve.kvstore.tiers.object.catalog import Pack
from llmserve.kvstore.tiers.object.layout import (
    FOOTER_BYTES,
    LONGEST_ENTRY_BYTES,
    Entry,
    encode_tail,
    entry_bytes,
    record_checksum,
)


def cost_bytes(key: bytes, length_bytes: int) -> int:
    """What a record takes in a pack, with its entry."""
    return length_bytes + entry_bytes(key)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a record goes."""

    header: memoryview
    data: memoryview
    offset: int


class Draft:
    """room_bytes: of the whole pack to be. done: answers every blob in it. A slot is taken with `slot`,
    filled, and kept with `keep`; what is not kept is garbage, or is taken again when nothing was kept
    after it."""

    def __init__(self, path: str, room_bytes: int) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.done: asyncio.Future[BlobResult] = asyncio.get_running_loop().create_future()
        self.size_bytes = FOOTER_BYTES  # of the pack, as it stands
        self._records_bytes = 0
        self._buffer = np.empty(max(room_bytes, FOOTER_BYTES + LONGEST_ENTRY_BYTES), np.uint8).data

    def fits(self, cost: int) -> bool:
        return self.size_bytes + cost <= len(self._buffer)

    def slot(self, header_bytes: int, data_bytes: int, after: int = 0) -> Slot:
        """after: bytes of slots taken and not kept yet."""
        start = self._records_bytes + after
        middle, end = start + header_bytes, start + header_bytes + data_bytes
        return Slot(self._buffer[start:middle], self._buffer[middle:end], start)

    def copy(self, blob: Blob) -> Entry:
        """Into the next slot. On a thread: takes a millisecond for a few MiB."""
        slot = self.slot(len(blob.header), blob.data.nbytes)
        slot.header[:] = blob.header
        # numpy lets the other threads run while it copies, slices of memoryviews do not
        np.copyto(np.asarray(slot.data), np.asarray(blob.data.cast("B")))
        checksum = record_checksum(blob.key, blob.header, slot.data)
        return Entry(blob.key, slot.offset, len(blob.header), blob.data.nbytes, checksum)

    def keep(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.size_bytes += cost_bytes(entry.key, entry.length_bytes)
        self._records_bytes = max(self._records_bytes, entry.offset + entry.length_bytes)

    def body(self) -> memoryview:
        """The pack, finished."""
        tail = encode_tail(self.entries, self._records_bytes)
        end = self._records_bytes + len(tail)
        self._buffer[self._records_bytes : end] = tail
        return self._buffer[:end]

    def pack(self, size_bytes: int) -> Pack:
        return Pack(self.path, size_bytes, self.entries, mine=True)

    @property
    def keys(self) -> list[BlobKey]:
        return [entry.key for entry in self.entries]
