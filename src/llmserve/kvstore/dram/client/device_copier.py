"""The copies of `copier` between the pool's slots and the memory of a device.

A copy runs while earlier blocks are digested. Blocks go straight between the device and their slots where
these are pinned, else through the pinned slots of a staging.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import xxhash

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import Copied, blocks_of
from llmserve.kvstore.dram.client.pinning import ArenaPinning
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import Bytes, Mark, RegionCopies, Staging
from llmserve.transfer.devices.copies import REACHED
from llmserve.transfer.spans import check_bounds

_DIGEST_BYTES = 512 << 10  # other threads run between two such pieces
_DEPTH = 3  # blocks that are copied at once: one is digested, and two copies do not wait for that
_Start = Callable[[Slot, Spans, Bytes], Mark]
_Ended = Callable[[Slot, int, bool], Copied]


class DevicePoolCopier:
    """One thread at a time. `close` comes before the arena's, and is idempotent."""

    def __init__(
        self, arena: AttachedArena, regions: Sequence[Region], staging: Staging, pinning: ArenaPinning
    ) -> None:
        """regions: the worker's memory, which outlives the copier. Errors: TransferError for memory that the
        staging does not reach."""
        self._arena, self._staging, self._pinning = arena, staging, pinning
        self._memory = RegionCopies(regions, staging.copies)

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Fills reserved slots, and digests them right after the copy. Errors: TransferError: some slots may
        have been written."""
        return self._each(self._start_store, lambda _, *ended: Copied.stored(*ended), slots, spans)

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Copies leased blocks out. Where the outcome is not DONE, and after an error, the memory of the
        device holds garbage. Errors: TransferError."""
        return self._each(self._start_load, Copied.loaded, slots, spans)

    def close(self) -> None:
        self._pinning.close()

    # -- inside

    def _each(self, start: _Start, ended: _Ended, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        if not self._arena.owner_lives():
            raise TransferError("kv pool: its owner has ended")
        check_bounds(spans, self._memory.lengths, "local")
        blocks = blocks_of(spans, [slot.length_bytes for slot in slots])
        copied: list[Copied] = []
        flights: deque[tuple[Slot, Mark]] = deque()
        try:
            for slot, block in zip(slots, blocks, strict=True):
                flights.append((slot, self._started(start, slot, block)))
                if len(flights) == _DEPTH:
                    copied.append(self._landed(ended, *flights.popleft()))
            while flights:
                copied.append(self._landed(ended, *flights.popleft()))
        finally:
            self._abandon(flights)
        return copied

    def _started(self, start: _Start, slot: Slot, block: Spans) -> Mark:
        """Copies nothing of a slot that was lost before: it is MOVED when it lands."""
        packed = np.frombuffer(self._arena.place(slot)[1], np.uint8)
        return start(slot, block, packed) if self._arena.is_current(slot) else REACHED

    def _start_store(self, slot: Slot, block: Spans, packed: Bytes) -> Mark:
        if self._pinning.holds(slot.offset, slot.length_bytes):
            return self._memory.gather(block, packed)
        self._staging.get(self._memory, block, packed)
        return REACHED

    def _start_load(self, slot: Slot, block: Spans, packed: Bytes) -> Mark:
        if self._pinning.holds(slot.offset, slot.length_bytes):
            return self._memory.scatter(block, packed)
        self._staging.put(self._memory, block, packed)
        return REACHED

    def _landed(self, ended: _Ended, slot: Slot, mark: Mark) -> Copied:
        """A foreign write to a slot is found by a load that ended after it; one between a store's copy and
        its digest is not, for that would need a second copy."""
        mark.wait()
        checksum = _digest(self._arena.place(slot)[1])
        return ended(slot, checksum, self._arena.is_current(slot))

    @staticmethod
    def _abandon(flights: deque[tuple[Slot, Mark]]) -> None:
        """Waits for copies that nobody wants any more: they use memory until then."""
        for _, mark in flights:
            with suppress(TransferError):
                mark.wait()


def _digest(content: memoryview) -> int:
    state = xxhash.xxh3_64()
    for start in range(0, len(content), _DIGEST_BYTES):
        state.update(content[start : start + _DIGEST_BYTES])
    return state.intdigest()
