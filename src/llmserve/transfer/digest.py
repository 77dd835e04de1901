"""Digests of pieces of registered memory: xxh3 with 64 bits, which detects errors and not attackers.

Measured on one AMD Zen 4 core with 720 scattered pieces of 16 KiB (each a block of one layer) in main memory:
8.1 GB/s, 2.0 us a piece, of which 0.3 us are Python's and the rest is memory latency. Pieces of 480 KiB: 33
GB/s. zlib.crc32: 2.4 GB/s. The library keeps the GIL for pieces up to at least 1 MiB; other threads run
between pieces. Bytes of a GPU come to the host through a staging; no kernel for the digest is needed, as
one piece in 16 is compared.
"""

import ctypes
from collections.abc import Sequence

import xxhash

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import RegionCopies, Staging
from llmserve.transfer.spans import check_bounds


def digest(regions: Sequence[Region], spans: Spans, staging: Staging | None = None) -> str:
    """Returns the digest of all pieces in their order. Two sides with the same bytes get the same digest,
    however the bytes are cut, and whatever memory they are in. staging: reads memory of its device; that of
    the host is read without a copy. Errors: TransferError for pieces outside the regions, and for a copy that
    fails."""
    check_bounds(spans, [region.length_bytes for region in regions], "digested")
    state = xxhash.xxh3_64()
    if not all(region.memory.on_host for region in regions):
        if staging is None:
            raise TransferError("digested spans: memory of a GPU is not readable without a staging")
        staging.outgoing(
            RegionCopies(regions, staging.copies), spans, lambda packed: state.update(packed.data)
        )
        return state.hexdigest()
    views = [_view(region) for region in regions]
    rows = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    for region, offset, length in rows:
        state.update(views[region][offset : offset + length])
    return state.hexdigest()


def _view(region: Region) -> memoryview:
    return memoryview((ctypes.c_char * region.length_bytes).from_address(region.address))
