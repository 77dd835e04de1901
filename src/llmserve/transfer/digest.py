"""Digests of pieces of registered memory: xxh3, 64 bits, for errors of the wire, not for attackers."""

import ctypes
from collections.abc import Sequence

import xxhash

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.spans import check_bounds


def digest(regions: Sequence[Region], spans: Spans) -> str:
    """Of all pieces together, in their order; no copy is made. Two sides that hold the same bytes, cut
    alike, get the same. Errors: TransferError for pieces outside the regions."""
    check_bounds(spans, [region.length_bytes for region in regions], "digested")
    addresses = [region.address for region in regions]
    state = xxhash.xxh3_64()
    rows = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    for region, offset, length in rows:
        state.update((ctypes.c_char * length).from_address(addresses[region] + offset))
    return state.hexdigest()
