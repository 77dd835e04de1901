"""Digests of pieces of registered memory, to tell whether what arrived is what was sent.

Pieces are hashed where they lie, by XXH3: 64 bits, which find accidents and do not stop an attacker.

Measured on one AMD Zen 4 core: 9.8 GB/s for 720 scattered pieces of 16 KiB (a block of one layer) out of
main memory, 1.7 us a piece, of which 0.3 us are Python's and the rest is waiting for memory; 22 GB/s out
of the cache; 33 GB/s for pieces of 480 KiB. Chaining the pieces of one block into one digest costs 2.0 us
a piece. (zlib.crc32: 2.4 GB/s.) The library keeps the GIL for pieces up to 1 MiB at least: other threads
run between two pieces.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.spans import check_bounds

UInt64Array = npt.NDArray[np.uint64]


def digests(regions: Sequence[Region], spans: Spans) -> UInt64Array:
    """One for each span, which must not be written to meanwhile. The regions are those that were
    registered, in that order. Errors: TransferError for a span outside them."""
    check_bounds(spans, [region.length_bytes for region in regions], "local")
    views = [_view(region) for region in regions]
    columns = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    pieces = (views[region][offset : offset + length] for region, offset, length in columns)
    return np.fromiter(map(xxh3_64_intdigest, pieces), np.uint64, len(spans.lengths))


def _view(region: Region) -> memoryview:
    return memoryview((ctypes.c_char * region.length_bytes).from_address(region.address))
