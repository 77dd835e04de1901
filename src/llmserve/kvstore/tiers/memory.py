"""The fake of a tier: blobs in the memory of a `MemoryMedium`, which outlives the tiers that use it.

For tests and for simulation. It keeps the whole contract of `base`, checksums included; the medium can be
told to fail, and its bytes can be damaged. A call yields to the loop between two blobs, so that calls
overlap as they do on a real medium.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import xxhash

from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import (
    Blob,
    BlobKey,
    BlobResult,
    ReadResult,
    ReadTarget,
    TierOutcome,
    Usage,
)

_DONE = BlobResult(TierOutcome.DONE)


@dataclass(slots=True)
class _MemoryBlob:
    header: bytes
    data: bytearray
    digest: int

    @property
    def is_whole(self) -> bool:
        return _digest(self.header, self.data) == self.digest


@dataclass(slots=True)
class MemoryMedium:
    """fault: why it does not do what it is asked, in words; empty: it does."""

    capacity_bytes: int
    fault: str = ""
    stored: dict[BlobKey, _MemoryBlob] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        return sum(len(blob.data) for blob in self.stored.values())

    def damage(self, key: BlobKey) -> None:
        """Flips one bit of what is stored."""
        self.stored[key].data[-1] ^= 1


class MemoryTier:
    name = "memory"

    def __init__(self, medium: MemoryMedium) -> None:
        self._medium = medium

    def __repr__(self) -> str:
        return f"<MemoryTier {self.usage()}>"

    async def open(self) -> None:
        if self._medium.fault:
            raise StartFailed(f"the medium in memory cannot be used: {self._medium.fault}")

    def holds(self, keys: Sequence[BlobKey]) -> list[bool]:
        return [key in self._medium.stored for key in keys]

    def sizes(self, keys: Sequence[BlobKey]) -> list[int]:
        stored = self._medium.stored
        return [len(stored[key].data) if key in stored else 0 for key in keys]

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        return [await self._write(blob) for blob in blobs]

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        return [await self._read(target) for target in targets]

    async def remove(self, keys: Sequence[BlobKey]) -> None:
        await asyncio.sleep(0)
        for key in keys:
            self._medium.stored.pop(key, None)

    async def settle_removals(self) -> BlobResult:
        await asyncio.sleep(0)
        return BlobResult(TierOutcome.FAILED, self._medium.fault) if self._medium.fault else _DONE

    def held(self) -> list[tuple[BlobKey, int]]:
        return [(key, len(blob.data)) for key, blob in self._medium.stored.items()]

    def usage(self) -> Usage:
        held = self._medium.held_bytes
        return Usage(len(self._medium.stored), held, held, self._medium.capacity_bytes)

    async def aclose(self) -> None:
        await asyncio.sleep(0)

    async def _write(self, blob: Blob) -> BlobResult:
        await asyncio.sleep(0)
        medium = self._medium
        if medium.fault:
            return BlobResult(TierOutcome.FAILED, medium.fault)
        if blob.key in medium.stored:
            return _DONE
        if medium.held_bytes + blob.data.nbytes > medium.capacity_bytes:
            return BlobResult(TierOutcome.FULL, f"over its capacity of {medium.capacity_bytes} bytes")
        data = bytearray(blob.data)
        medium.stored[blob.key] = _MemoryBlob(blob.header, data, _digest(blob.header, data))
        return _DONE

    async def _read(self, target: ReadTarget) -> ReadResult:
        await asyncio.sleep(0)
        if self._medium.fault:
            return ReadResult(TierOutcome.FAILED, self._medium.fault)
        blob = self._medium.stored.get(target.key)
        if blob is None:
            return ReadResult(TierOutcome.MISSING, "not there")
        if not blob.is_whole:
            del self._medium.stored[target.key]
            return ReadResult(TierOutcome.CORRUPT, "its checksum is wrong")
        size = len(blob.data)
        if target.buffer.nbytes < size:
            return ReadResult(
                TierOutcome.FAILED, f"{size} bytes do not fit a buffer of {target.buffer.nbytes}"
            )
        target.buffer[:size] = blob.data
        return ReadResult(TierOutcome.DONE, header=blob.header, length_bytes=size)


def _digest(header: bytes, data: bytearray) -> int:
    state = xxhash.xxh3_64(header)
    state.update(data)
    return state.intdigest()
