"""Writes and erases heads in the heads file. Called on threads; blocks. Errors: OSError.

Heads go through the page cache: they outlive the process at once, and a power failure when they are synced.
"""

from collections.abc import Iterator, Sequence

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.nvme.disk import TierFile
from llmserve.kvstore.tiers.nvme.heads import FREE_HEAD, HEAD_BYTES, BlobHead, Place, pack_head, read_heads

_WINDOW_BYTES = 4 << 20


class HeadFile:
    def __init__(self, file: TierFile, stamp: int) -> None:
        self.file, self._stamp = file, stamp

    def write(self, heads: Sequence[tuple[int, BlobKey, Place]]) -> None:
        """Writes heads into their slots. heads: sequence, key and place of each."""
        self._put([slot for head in heads for slot in pack_head(*head, self._stamp)])

    def erase(self, slots: Sequence[int]) -> None:
        """The blobs are not found again after a restart."""
        self._put([(slot, FREE_HEAD) for slot in slots])

    def read_all(self, size_bytes: int) -> Iterator[BlobHead]:
        """What is whole in each slot of the first bytes of the file."""
        memory = memoryview(bytearray(_WINDOW_BYTES))
        for start in range(0, size_bytes, _WINDOW_BYTES):
            there = self.file.read([memory[: size_bytes - start]], start) // HEAD_BYTES * HEAD_BYTES
            yield from read_heads(memory[:there], start // HEAD_BYTES, self._stamp)

    def _put(self, heads: list[tuple[int, bytes]]) -> None:
        """Neighbours by one system call."""
        row: list[memoryview] = []
        start = 0
        for slot, raw in sorted(heads):
            if slot != start + len(row) or len(row) == _MOST_IN_A_CALL:
                self._flush(start, row)
                start, row = slot, []
            row.append(memoryview(raw))
        self._flush(start, row)

    def _flush(self, start: int, row: list[memoryview]) -> None:
        if row:
            self.file.write(row, start * HEAD_BYTES)


_MOST_IN_A_CALL = 512  # IOV_MAX is 1024
