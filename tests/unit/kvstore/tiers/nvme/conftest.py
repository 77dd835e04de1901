"""A small NVMe tier, on a disk that fails as it is told to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from tests.conformance.faulty_disk import DiskFaults
from tests.unit.kvstore.tiers.nvme.blobs import make_tier

MIB = 1 << 20


@pytest.fixture
def faults() -> DiskFaults:
    return DiskFaults()


@pytest.fixture
def settings(tmp_path: Path) -> NvmeSettings:
    return NvmeSettings(tmp_path / "kv", 8 * MIB)


@pytest.fixture
async def tier(settings: NvmeSettings, faults: DiskFaults) -> AsyncIterator[NvmeTier]:
    tier = make_tier(settings, faults)
    await tier.open()
    yield tier
    faults.all_fail(0)
    await tier.aclose()
