"""The tiers for tests/conformance/test_tier.py. To run the suite on another tier, write its kit and add
it to KITS. A medium that is costly to start belongs into a session fixture, which the kit asks `request` for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest

from llmserve.kvstore.tiers.base import BlobKey, Tier
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier

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


KITS: Mapping[str, Callable[[pytest.FixtureRequest], TierKit]] = {"memory": MemoryKit}
