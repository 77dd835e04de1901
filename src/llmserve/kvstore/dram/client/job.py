"""Blocks to copy between this worker's memory and the pool, as one batch for a transport."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.pieces import LocalMemory, Rows
from llmserve.kvstore.dram.shape import DATA_REGION, ArenaShape
from llmserve.transfer.base import Batch, Int64Array, Spans


@dataclass(frozen=True, slots=True)
class Job:
    """rows: where each block lies here. batch: the pieces of all. pieces: how many each has."""

    slots: tuple[Slot, ...]
    rows: tuple[list[Rows], ...]
    batch: Batch
    pieces: Int64Array

    @classmethod
    def of(cls, slots: Sequence[Slot], spans: Spans, shape: ArenaShape, memory: LocalMemory) -> "Job":
        """Errors: TransferError for slots or pieces outside of memory, or that do not fit each other."""
        for slot in slots:
            if not 0 <= slot.offset <= slot.offset + slot.length_bytes <= shape.capacity_bytes:
                raise TransferError(f"kv pool: no such slot: {slot}")
        sizes = np.array([slot.length_bytes for slot in slots], np.int64)
        rows = memory.blocks(spans, sizes.tolist())
        pieces = np.array([sum(part.count for part in block) for block in rows], np.int64)
        shifts = np.array([slot.offset for slot in slots], np.int64) - (np.cumsum(sizes) - sizes)
        offsets = np.cumsum(spans.lengths) - spans.lengths + np.repeat(shifts, pieces)
        remote = Spans(np.full(len(offsets), DATA_REGION), offsets, spans.lengths)
        return cls(tuple(slots), tuple(rows), Batch(spans, remote), pieces)

    def only(self, wanted: Sequence[bool]) -> "Job":
        if all(wanted):
            return self
        mask = np.repeat(np.array(wanted, np.bool_), self.pieces)
        halves = (self.batch.local, self.batch.remote)
        local, remote = (Spans(h.regions[mask], h.offsets[mask], h.lengths[mask]) for h in halves)
        slots, rows = tuple(compress(self.slots, wanted)), tuple(compress(self.rows, wanted))
        return Job(slots, rows, Batch(local, remote), self.pieces[np.array(wanted, np.bool_)])
