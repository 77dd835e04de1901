"""Digests of pieces of memory."""

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.digest import digest

MEMORY = np.arange(4096, dtype=np.uint8)
REGIONS = [Region(MEMORY.ctypes.data, 2048), Region(MEMORY.ctypes.data + 2048, 2048)]


def _spans(*rows: tuple[int, int, int]) -> Spans:
    regions, offsets, lengths = np.asarray(rows, np.int64).T
    return Spans(regions, offsets, lengths)


def test_equal_bytes_equal_digests_wherever_they_lie() -> None:
    assert digest(REGIONS, _spans((0, 0, 100), (1, 5, 3))) == digest(
        REGIONS, _spans((1, 256, 100), (0, 261, 3))
    )


def test_it_does_not_matter_how_bytes_are_cut() -> None:
    whole, cut = _spans((0, 0, 100)), _spans((0, 0, 1), (0, 1, 60), (1, 5, 0), (0, 61, 39))
    assert digest(REGIONS, whole) == digest(REGIONS, cut)


def test_one_byte_changes_it() -> None:
    spans = _spans((0, 0, 2048))
    before = digest(REGIONS, spans)
    MEMORY[1000] ^= 1
    after = digest(REGIONS, spans)
    MEMORY[1000] ^= 1
    assert after != before == digest(REGIONS, spans)


def test_nothing_outside_is_read() -> None:
    with pytest.raises(TransferError, match="outside"):
        digest(REGIONS, _spans((1, 2000, 100)))


def test_it_does_not_matter_in_which_memory_bytes_are() -> None:
    device = FakeDevice()
    staging, region = Staging(device), device.allocate(MEMORY.nbytes)
    device.view(region)[:] = MEMORY
    spans = _spans((0, 2040, 8), (0, 0, 2000))
    mixed = [REGIONS[0], region]
    assert digest([region], spans, staging) == digest(REGIONS, _spans((1, 248, 8), (0, 0, 2000)))
    assert digest(mixed, _spans((1, 3, 100), (0, 5, 100)), staging) == digest(
        REGIONS, _spans((0, 3, 100), (0, 5, 100))
    )
    with pytest.raises(TransferError, match="outside"):
        digest([region], _spans((0, 4000, 100)), staging)
    with pytest.raises(TransferError, match="memory of a GPU is not readable"):
        digest([region], spans)
    device.fail_copy()
    with pytest.raises(TransferError, match="a copy of memory of GPU 0 failed"):
        digest([region], spans, staging)
    device.close()
