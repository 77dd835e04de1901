"""The tiers for tests/conformance/test_tier.py. To run the suite on another tier, write its kit and add
it to KITS. A medium that is costly to start belongs into a session fixture, which the kit asks `request` for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from llmserve.kvstore.tiers.base import BlobKey, Tier
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from tests.conformance.faulty_disk import EIO, DiskFaults, FaultyDisk
from tests.conformance.nvme_files import flip, stored
from tests.conformance.object_kits import DirectoryKit, S3Kit

MIB = 1 << 20


class TierKit(Protocol):
    """One medium, empty at first, and tiers on it: `make` is called again after the one before is closed.

    capacity_bytes: of these tiers; at least 4 MiB of blobs fit, and no more than 64 MiB.
    """

    capacity_bytes: int

    def make(self) -> Tier: ...

    def make_unusable(self) -> Tier:
        """A tier whose `open` cannot succeed."""

    def damage(self, key: BlobKey) -> None:
        """Changes one bit of the data of a stored blob on the medium. A tier may be open."""

    def failing(self) -> AbstractContextManager[None]:
        """The medium refuses every read and write meanwhile; what it holds stays."""


class MemoryKit:
    capacity_bytes = 8 * MIB

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._medium = MemoryMedium(self.capacity_bytes)

    def make(self) -> Tier:
        return MemoryTier(self._medium)

    def make_unusable(self) -> Tier:
        return MemoryTier(MemoryMedium(self.capacity_bytes, fault="no such memory"))

    def damage(self, key: BlobKey) -> None:
        self._medium.damage(key)

    @contextmanager
    def failing(self) -> Iterator[None]:
        self._medium.fault = "told to fail"
        yield
        self._medium.fault = ""


class NvmeKit:
    capacity_bytes = 32 * MIB
    is_direct = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._directory: Path = request.getfixturevalue("tmp_path") / "kv"
        self._faults = DiskFaults()

    def make(self) -> Tier:
        return self._make(self._directory)

    def make_unusable(self) -> Tier:
        """Where its directory should be is a file."""
        self._directory.write_text("a file")
        return self._make(self._directory)

    def damage(self, key: BlobKey) -> None:
        (found,) = [blob for blob in stored(self._directory) if blob.key == key]
        flip(found.path, found.data_at + found.length // 2)

    @contextmanager
    def failing(self) -> Iterator[None]:
        self._faults.all_fail(EIO)
        yield
        self._faults.all_fail(0)

    def _make(self, directory: Path) -> Tier:
        settings = NvmeSettings(directory, self.capacity_bytes)
        return NvmeTier(settings, lambda where: FaultyDisk(where, self._faults, is_direct=self.is_direct))


class BufferedNvmeKit(NvmeKit):
    """Where the file system refuses direct I/O."""

    is_direct = False


KITS: Mapping[str, Callable[[pytest.FixtureRequest], TierKit]] = {
    "memory": MemoryKit,
    "nvme": NvmeKit,
    "nvme-buffered": BufferedNvmeKit,
    "object": DirectoryKit,
    "object-s3": S3Kit,
}
