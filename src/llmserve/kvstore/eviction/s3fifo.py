"""S3-FIFO (Yang et al., SOSP 2023): a small queue on probation, a main queue, a memory of what left.

A new block enters the small queue. At its end it goes to the main queue if it was used meanwhile, and out
if not; so blocks that are never used again pass through a tenth of the room. In the main queue each use
buys one more round. A block that comes back soon after it left probation enters the main queue.
"""

from collections.abc import Iterator
from itertools import chain

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction.base import BlockQueue

_SMALL_SHARE = 0.1  # of the bytes held
_MOST_USES = 3


class S3FifoPolicy:
    def __init__(self) -> None:
        self._small, self._main, self._left = BlockQueue(), BlockQueue(), BlockQueue()
        self._uses: dict[BlockHash, int] = {}  # of those used since they entered their queue

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def add(self, key: BlockHash, size_bytes: int) -> None:
        queue = self._main if self._left.discard(key) else self._small
        queue.push(key, size_bytes)

    def touch(self, key: BlockHash) -> None:
        self._uses[key] = min(self._uses.get(key, 0) + 1, _MOST_USES)

    def candidates(self) -> Iterator[BlockHash]:
        self._settle()
        queues = (self._small, self._main) if self._small_is_due() else (self._main, self._small)
        unused = (key for queue in queues for key in queue if key not in self._uses)
        used = (key for queue in queues for key in queue if key in self._uses)
        return chain(unused, used)

    def remove(self, key: BlockHash, *, evicted: bool) -> None:
        self._uses.pop(key, None)
        if key in self._main:
            self._main.pop(key)
        else:
            size_bytes = self._small.pop(key)
            if evicted:
                self._left.push(key, size_bytes)
        self._left.trim(self._held_bytes())

    def check_integrity(self) -> None:
        for queue in (self._small, self._main, self._left):
            queue.check_integrity()
        held = {*self._small, *self._main}
        assert len(held) == len(self), "in both queues"
        assert self._uses.keys() <= held
        assert held.isdisjoint(self._left)

    # -- parts

    def _held_bytes(self) -> int:
        return self._small.held_bytes + self._main.held_bytes

    def _small_is_due(self) -> bool:
        return self._small.held_bytes > _SMALL_SHARE * self._held_bytes() or not self._main

    def _settle(self) -> None:
        """Until the oldest of the queue that is due has no claim to stay."""
        while len(self):
            small_is_due = self._small_is_due()
            queue = self._small if small_is_due else self._main
            key = queue.oldest()
            if key not in self._uses:
                return
            self._pass_probation(key) if small_is_due else self._another_round(key)

    def _pass_probation(self, key: BlockHash) -> None:
        del self._uses[key]
        self._main.push(key, self._small.pop(key))

    def _another_round(self, key: BlockHash) -> None:
        self._main.renew(key)
        left = self._uses.pop(key) - 1
        if left:
            self._uses[key] = left
