"""The contract of an eviction policy: in which order blocks go. Pure; no clock, no sizes but its own.

A policy knows only the blocks it was told of and whether they were used again. What may not go now (a
parent of held blocks, a pinned block, a hot one) is the business of `TierBook`, which asks a policy for
candidates and takes the first that may go. One policy serves one tenant in one tier. Its own bounds
(shares of queues, length of memory of what was evicted) follow from the bytes it holds, so it needs no
capacity. Every call takes amortised constant time.

Implementations: `LruPolicy`, `S3FifoPolicy`, `ArcPolicy`; all pass tests/conformance/test_eviction.py.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from llmserve.core.ids import BlockHash


class EvictionPolicy(Protocol):
    def __len__(self) -> int:
        """Blocks held."""

    def add(self, key: BlockHash, size_bytes: int) -> None:
        """Was stored. It is not held yet."""

    def touch(self, key: BlockHash) -> None:
        """A held block was used again."""

    def candidates(self) -> Iterator[BlockHash]:
        """Every held block once, the first to go first. May be left at any point; the policy must not be
        changed in between."""

    def remove(self, key: BlockHash, *, evicted: bool) -> None:
        """A held block is gone. evicted: for want of room, so its return says something."""

    def check_integrity(self) -> None:
        """Raises AssertionError when its parts do not add up."""


MakePolicy = Callable[[], EvictionPolicy]
