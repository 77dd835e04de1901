"""Digests of pieces of registered memory: xxh3, 64 bits, for errors of the wire, not for attackers.

Measured on one AMD Zen 4 core, 720 scattered pieces of 16 KiB (each a block of one layer) out of main memory:
8.1 GB/s, 2.0 us a piece, of which 0.3 us are Python's and the rest is waiting for memory. Pieces of 480 KiB:
33 GB/s. (zlib.crc32: 2.4 GB/s.) The library keeps the GIL for pieces up to 1 MiB at least; other threads
run between two pieces.
"""

import ctypes
from collections.abc import Sequence

import xxhash

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.spans import check_bounds


def digest(regions: Sequence[Region], spans: Spans) -> str:
    """Of all pieces together, in their order; no copy is made. Two sides that hold the same bytes get
    the same, however these are cut. Errors: TransferError for pieces outside the regions."""
    check_bounds(spans, [region.length_bytes for region in regions], "digested")
    views = [_view(region) for region in regions]
    state = xxhash.xxh3_64()
    rows = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    for region, offset, length in rows:
        state.update(views[region][offset : offset + length])
    return state.hexdigest()


def _view(region: Region) -> memoryview:
    return memoryview((ctypes.c_char * region.length_bytes).from_address(region.address))
