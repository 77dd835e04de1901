"""Digests of pieces of registered memory: xxh3 with 64 bits, which detects errors and not attackers.

Measured on one AMD Zen 4 core with 720 scattered pieces of 16 KiB (each a block of one layer) in main memory:
8.1 GB/s, 2.0 us a piece, of which 0.3 us are Python's and the rest is memory latency. Pieces of 480 KiB: 33
GB/s. zlib.crc32: 2.4 GB/s. The library keeps the GIL for pieces up to at least 1 MiB; other threads run
between pieces.
"""

import ctypes
from collections.abc import Sequence

import xxhash

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.spans import check_bounds


def digest(regions: Sequence[Region], spans: Spans) -> str:
    """Returns the digest of all pieces in their order, without a copy. Two sides with the same bytes get the
    same digest, however the bytes are cut. Errors: TransferError for pieces outside the regions."""
    check_bounds(spans, [region.length_bytes for region in regions], "digested")
    views = [_view(region) for region in regions]
    state = xxhash.xxh3_64()
    rows = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    for region, offset, length in rows:
        state.update(views[region][offset : offset + length])
    return state.hexdigest()


def _view(region: Region) -> memoryview:
    return memoryview((ctypes.c_char * region.length_bytes).from_address(region.address))
