"""The contract of what keeps files and batches. Implementations: a directory (disk.py), a bucket (bucket.py).

A path is relative, of plain names that `/` separates. An object is either written whole (`put`) or grows by
appends; both are durable when the call returns. Errors of all calls: Unavailable; StorageFull.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol

# The most that is appended in one call, or read in one piece.
PIECE_BYTES = 4 << 20


class Claim(Protocol):
    """The right to run a batch, which one process has at a time."""

    lost: asyncio.Event
    """Set when another process may have the claim: nothing may be written any more."""

    async def release(self) -> None:
        """Lets others claim it. Idempotent."""


class BatchStorage(Protocol):
    """Called concurrently."""

    async def put(self, path: str, data: bytes) -> None:
        """Writes an object whole, in place of what had its path."""

    async def append(self, path: str, data: bytes) -> None:
        """Adds to an object, which is made by its first append. A process that dies meanwhile may leave a
        part of the data."""

    async def get(self, path: str) -> bytes | None:
        """Returns an object that was `put`; None when there is none."""

    def read(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yields the pieces of an object that was appended to; nothing when there is none."""

    async def names(self, folder: str) -> list[str]:
        """Returns the names directly in a folder, sorted."""

    async def delete(self, path: str) -> None:
        """Deletes an object. It is no error when there is none."""

    async def claim(self, path: str) -> Claim | None:
        """Claims an object that was `put` as empty. Returns None while another process has it, or when there
        is none. `delete` ends the object and the claim together."""
