"""What a probe reads: a pattern in registered memory of the peer, and where it lands here.

A probe is a small read and a large one, both verified against digests that the peer told. The first read
over a connection is not measured: wiring up takes longer than any transfer.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Region, Spans, TransferState, TransferStatus
from llmserve.transfer.choice import Measured

SMALL_BYTES = 64 << 10
LARGE_BYTES = 4 << 20
_READS = 3  # of each size; the quickest counts

Read = Callable[[Batch], Awaitable[TransferStatus]]


@dataclass(frozen=True, slots=True)
class ProbeInfo:
    """What a peer tells of its pattern. region: its index in the peer's registered memory. The digests
    are of its first SMALL_BYTES and LARGE_BYTES."""

    region: int
    small_digest: str
    large_digest: str

    def to_message(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "ProbeInfo":
        """Errors: TransferError."""
        try:
            return cls(int(message["region"]), str(message["small_digest"]), str(message["large_digest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TransferError("malformed probe info") from error


class ProbeMemory:
    """Two times LARGE_BYTES: the pattern that peers read, and the landing of our own reads. Lives as long as
    the transports it is registered with. One probe at a time may use the landing."""

    def __init__(self, region_index: int) -> None:
        """region_index: its place in the order of registration, on this side."""
        self._index = region_index
        self._memory = np.zeros(2 * LARGE_BYTES, np.uint8)
        self._memory[:LARGE_BYTES] = np.random.default_rng().integers(0, 256, LARGE_BYTES, np.uint8)
        self.info = ProbeInfo(region_index, self._digest(0, SMALL_BYTES), self._digest(0, LARGE_BYTES))

    @property
    def region(self) -> Region:
        return Region(self._memory.ctypes.data, self._memory.nbytes)

    def begin(self, theirs: ProbeInfo, size_bytes: int) -> Batch:
        """Empties the landing; the batch reads the beginning of the peer's pattern into it."""
        self._memory[LARGE_BYTES:] = 0
        return Batch(_span(self._index, LARGE_BYTES, size_bytes), _span(theirs.region, 0, size_bytes))

    def landed(self, size_bytes: int) -> str:
        """The digest of what arrived."""
        return self._digest(LARGE_BYTES, size_bytes)

    def _digest(self, offset: int, size_bytes: int) -> str:
        return xxhash.xxh3_64_hexdigest(self._memory[offset : offset + size_bytes].data)


def _span(region: int, offset: int, length: int) -> Spans:
    return Spans(*(np.asarray([value], np.int64) for value in (region, offset, length)))


async def probe(memory: ProbeMemory, theirs: ProbeInfo, read: Read) -> Measured:
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
