"""A pool that has codes in the place of blocks: `formats.quantize` on the worker's side of the DRAM tier.

Each block is quantized into a row of a buffer in the worker's own memory, and the rows are copied; a load
goes the other way. So half the bytes cross the bus, and the pool has room for twice the blocks. To the KV
manager codes are bytes without numbers in them, which no lower tier quantizes again.

A row ends in a tag that names the grid and the shape: codes of another format are not taken for a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Protocol

import numpy as np
import xxhash

from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.copier import Copied, CopyOutcome, PoolAccess, blocks_of
from llmserve.kvstore.formats import BlockShape, Element, Quantize, grouped
from llmserve.kvstore.formats.quantize import Quantizer, quantized_bytes
from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.devices import HostCopies
from llmserve.transfer.spans import RegionTable, check_bounds

ROWS = 8  # of the buffer: more are not copied faster
TAG_BYTES = 8


@dataclass(frozen=True, slots=True)
class Codes:
    """How blocks of a shape are kept as codes."""

    shape: BlockShape
    grid: Quantize

    @property
    def code_bytes(self) -> int:
        """Length of the codes of a block."""
        return quantized_bytes(self.shape)

    @property
    def row_bytes(self) -> int:
        """Length of the codes of a block, up to a multiple of the tag, and of their tag."""
        return -(-self.code_bytes // TAG_BYTES) * TAG_BYTES + TAG_BYTES

    @property
    def tag(self) -> bytes:
        return xxhash.xxh3_64_digest(f"{self.grid} {self.shape.text()}".encode())

    @property
    def stored_shape(self) -> BlockShape:
        """The shape that the KV manager sees."""
        return grouped(Element.OPAQUE, self.row_bytes)


class RowCoder(Protocol):
    """Codes blocks in the worker's memory, whose pieces are given by their addresses and lengths, from and to
    rows in the same memory. One thread. Errors: TransferError."""

    rows: Region

    def encode(self, starts: Int64Array, lengths: Int64Array, row: int) -> None:
        """Starts filling a row with the codes of a block."""

    def decode(self, row: int, starts: Int64Array, lengths: Int64Array) -> None:
        """Starts filling a block with the numbers of a row."""

    def fits(self, row: int) -> bool:
        """Waits for `encode`. False: the block cannot be quantized (Quantizer.quantize)."""

    def has_tag(self, row: int) -> bool:
        """Says whether a row that was loaded has codes of this format."""

    def wait(self) -> None:
        """Waits until all that was started has ended."""


class HostCoder:
    """Host memory: all has ended at once."""

    def __init__(self, codes: Codes) -> None:
        self._rows = np.zeros((ROWS, codes.row_bytes), np.uint8)
        self._code_bytes = codes.code_bytes
        self.rows = Region(self._rows.ctypes.data, self._rows.nbytes)
        self._block = np.empty(codes.shape.size_bytes, np.uint8)
        self._quantizer, self._copies = Quantizer(codes.shape, codes.grid), HostCopies()
        self._tag = np.frombuffer(codes.tag, np.uint8)
        self._fits = [False] * ROWS

    def encode(self, starts: Int64Array, lengths: Int64Array, row: int) -> None:
        self._copies.gather(starts, lengths, self._block)
        self._fits[row] = self._quantizer.quantize(self._block, self._rows[row, : self._code_bytes])
        self._rows[row, -TAG_BYTES:] = self._tag

    def decode(self, row: int, starts: Int64Array, lengths: Int64Array) -> None:
        self._quantizer.dequantize(self._rows[row, : self._code_bytes], self._block)
        self._copies.scatter(starts, lengths, self._block)

    def fits(self, row: int) -> bool:
        return self._fits[row]

    def has_tag(self, row: int) -> bool:
        return bool((self._rows[row, -TAG_BYTES:] == self._tag).all())

    def wait(self) -> None:
        """Does nothing."""


class QuantizedPool:
    """A PoolAccess. Owns the inner pool, whose one region are the rows. A block that cannot be quantized is
    not stored: it is UNFIT."""

    def __init__(self, inner: PoolAccess, regions: Sequence[Region], coder: RowCoder, codes: Codes) -> None:
        """regions: the worker's memory, which outlives the pool."""
        self._inner, self._coder, self._codes = inner, coder, codes
        self._table = RegionTable.of(regions)

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        return self._each(self._store, slots, spans)

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        return self._each(self._load, slots, spans)

    def close(self) -> None:
        self._inner.close()

    # -- inside

    def _each(
        self,
        copy: Callable[[Sequence[Slot], Sequence[Spans]], list[Copied]],
        slots: Sequence[Slot],
        spans: Spans,
    ) -> list[Copied]:
        check_bounds(spans, self._table.lengths, "local")
        blocks = blocks_of(spans, [self._codes.shape.size_bytes] * len(slots))
        copied: list[Copied] = []
        for first in range(0, len(slots), ROWS):
            copied += copy(slots[first : first + ROWS], blocks[first : first + ROWS])
        return copied

    def _store(self, slots: Sequence[Slot], blocks: Sequence[Spans]) -> list[Copied]:
        for row, block in enumerate(blocks):
            self._coder.encode(self._table.starts(block), block.lengths, row)
        self._coder.wait()
        fits = [self._coder.fits(row) for row in range(len(blocks))]
        rows = np.flatnonzero(fits)
        stored = iter(self._inner.store(list(compress(slots, fits)), self._spans(rows)) if any(fits) else ())
        return [next(stored) if one else Copied(CopyOutcome.UNFIT) for one in fits]

    def _load(self, slots: Sequence[Slot], blocks: Sequence[Spans]) -> list[Copied]:
        loaded = self._inner.load(slots, self._spans(np.arange(len(slots))))
        for row, block in enumerate(blocks):
            if loaded[row].outcome is not CopyOutcome.DONE:
                continue
            if self._coder.has_tag(row):
                self._coder.decode(row, self._table.starts(block), block.lengths)
            else:
                loaded[row] = replace(loaded[row], outcome=CopyOutcome.CORRUPT)
        self._coder.wait()
        return loaded

    def _spans(self, rows: Int64Array) -> Spans:
        size = self._codes.row_bytes
        return Spans(np.zeros_like(rows), rows * size, np.full_like(rows, size))
