"""What a probe reads: a pattern in registered memory of the peer; and where it lands here. Both are in the
kind of memory that the KV is in: over another one a probe would measure another path.

A probe is a few small reads and a few large ones, compared with the peer's digests. The first
read over a connection is not measured: wiring up takes longer than any transfer.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Region, Spans, TransferState, TransferStatus
from llmserve.transfer.devices import Bytes, RegionCopies, Staging
from llmserve.transfer.digest import digest
from llmserve.transfer.engine.choice import Measured

SMALL_BYTES = 64 << 10
LARGE_BYTES = 4 << 20
_READS = 3  # of each size; the quickest counts

Read = Callable[[Batch], Awaitable[TransferStatus]]


@dataclass(frozen=True, slots=True)
class ProbeInfo:
    """region: index of the pattern in the peer's registered memory. small_digest and large_digest: digests of
    the first SMALL_BYTES and LARGE_BYTES of the pattern."""

    region: int
    small_digest: str
    large_digest: str


class ProbeMemory:
    """The pattern that peers read, and the landing of this side's reads; LARGE_BYTES each. It lives as long
    as the transports it is registered with. One probe at a time may use the landing."""

    def __init__(self, region_index: int, staging: Staging | None = None) -> None:
        """region_index: place in the order of registration, on this side. staging: puts both into the memory
        of its device. Errors: TransferError when there is no such memory."""
        self._index = region_index
        self._staging = staging
        self._blank = np.zeros(LARGE_BYTES, np.uint8)
        if staging is None:
            self._memory = np.empty(2 * LARGE_BYTES, np.uint8)
            self.region = Region(self._memory.ctypes.data, self._memory.nbytes)
        else:
            self.region = staging.copies.allocate(2 * LARGE_BYTES)
        self._put(0, np.random.default_rng().integers(0, 256, LARGE_BYTES, np.uint8))
        self.info = ProbeInfo(region_index, self._digest(0, SMALL_BYTES), self._digest(0, LARGE_BYTES))

    def begin(self, theirs: ProbeInfo, size_bytes: int) -> Batch:
        """Empties the landing. The batch reads the beginning of the peer's pattern into it. Errors:
        TransferError."""
        self._put(LARGE_BYTES, self._blank)
        return Batch(one_span(self._index, LARGE_BYTES, size_bytes), one_span(theirs.region, 0, size_bytes))

    def landed(self, size_bytes: int) -> str:
        """Digest of what has arrived."""
        return self._digest(LARGE_BYTES, size_bytes)

    def _digest(self, offset: int, size_bytes: int) -> str:
        return digest([self.region], one_span(0, offset, size_bytes), self._staging)

    def _put(self, offset: int, content: Bytes) -> None:
        if self._staging is None:
            self._memory[offset : offset + len(content)] = content
            return
        memory = RegionCopies([self.region], self._staging.copies)
        self._staging.put(memory, one_span(0, offset, len(content)), content)


def one_span(region: int, offset: int, length: int) -> Spans:
    return Spans(*(np.asarray([value], np.int64) for value in (region, offset, length)))


async def measure(memory: ProbeMemory, theirs: ProbeInfo, read: Read) -> Measured:
    """read: one transport to one peer. Errors: TransferError when a read fails or brings other bytes."""
    await _timed(memory, theirs, read, SMALL_BYTES)
    small = [await _timed(memory, theirs, read, SMALL_BYTES) for _ in range(_READS)]
    large = [await _timed(memory, theirs, read, LARGE_BYTES) for _ in range(_READS)]
    return Measured(min(small), LARGE_BYTES / min(large))


async def _timed(memory: ProbeMemory, theirs: ProbeInfo, read: Read, size_bytes: int) -> float:
    batch = memory.begin(theirs, size_bytes)
    started = time.perf_counter()
    status = await read(batch)
    seconds = time.perf_counter() - started
    if status.state is not TransferState.DONE:
        raise TransferError(status.reason or "failed without a reason")
    wanted = theirs.small_digest if size_bytes == SMALL_BYTES else theirs.large_digest
    if memory.landed(size_bytes) != wanted:
        raise TransferError(f"a read of {size_bytes} bytes brought other bytes than the peer's")
    return seconds
