"""The contract of an eviction policy: in which order blocks go. Pure; no clock, no sizes but its own.

A policy knows only the blocks it was told of and whether they were used again. What may not go now (a
parent of held blocks, a pinned block, a hot one) is the business of `TierIndex`, which asks a policy for
candidates and takes the first that may go. One policy serves one tenant in one tier. Its own bounds
(shares of queues, length of memory of what was evicted) follow from the bytes it holds, so it needs no
capacity. Every call takes amortised constant time.

Implementations: `S3FifoPolicy`, `ArcPolicy`; both pass tests/conformance/test_eviction.py, as does the
`LruPolicy` of tests/support.
"""

from collections import OrderedDict
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


class BlockQueue:
    """Oldest first."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[BlockHash, int] = OrderedDict()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._sizes

    def __iter__(self) -> Iterator[BlockHash]:
        return iter(self._sizes)

    def push(self, key: BlockHash, size_bytes: int) -> None:
        """As the youngest; it is not in the queue yet."""
        self._sizes[key] = size_bytes
        self.held_bytes += size_bytes

    def pop(self, key: BlockHash) -> int:
        """Returns its bytes. Errors: KeyError."""
        size_bytes = self._sizes.pop(key)
        self.held_bytes -= size_bytes
        return size_bytes

    def discard(self, key: BlockHash) -> bool:
        """Whether it was there."""
        if key not in self._sizes:
            return False
        self.pop(key)
        return True

    def renew(self, key: BlockHash) -> None:
        """Makes a block of the queue its youngest."""
        self._sizes.move_to_end(key)

    def oldest(self) -> BlockHash:
        """Errors: StopIteration when empty."""
        return next(iter(self._sizes))

    def trim(self, limit_bytes: int) -> None:
        """Drops the oldest until the rest is within the limit."""
        while self.held_bytes > limit_bytes:
            self.pop(self.oldest())

    def check_integrity(self) -> None:
        assert self.held_bytes == sum(self._sizes.values())
