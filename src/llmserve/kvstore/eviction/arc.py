"""ARC (Megiddo and Modha, FAST 2003): used once, used again, and a border that learns.

Two queues by recency, `once` and `again`, and a memory of what left each. A block that returns after it
left `once` says that queue is too short; after it left `again`, the other way. `target` is the share of
bytes that `once` should have.
"""

from collections.abc import Iterator
from itertools import chain

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction.base import BlockQueue


class ArcPolicy:
    def __init__(self) -> None:
        self._once, self._again = BlockQueue(), BlockQueue()
        self._left_once, self._left_again = BlockQueue(), BlockQueue()
        self._target_bytes = 0.0

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def add(self, key: BlockHash, size_bytes: int) -> None:
        returns = self._learn(key, size_bytes)
        queue = self._again if returns else self._once
        queue.push(key, size_bytes)

    def touch(self, key: BlockHash) -> None:
        if key in self._again:
            self._again.renew(key)
        else:
            self._again.push(key, self._once.pop(key))

    def candidates(self) -> Iterator[BlockHash]:
        once_first = self._once.held_bytes > self._target_bytes or not self._again
        return chain(self._once, self._again) if once_first else chain(self._again, self._once)

    def remove(self, key: BlockHash, *, evicted: bool) -> None:
        held, left = (self._once, self._left_once) if key in self._once else (self._again, self._left_again)
        size_bytes = held.pop(key)
        if evicted:
            left.push(key, size_bytes)
        self._bound()

    def check_integrity(self) -> None:
        queues = (self._once, self._again, self._left_once, self._left_again)
        for queue in queues:
            queue.check_integrity()
        assert len(set(chain(*queues))) == sum(map(len, queues)), "in two queues"
        assert self._target_bytes >= 0

    # -- parts

    def _held_bytes(self) -> int:
        return self._once.held_bytes + self._again.held_bytes

    def _learn(self, key: BlockHash, size_bytes: int) -> bool:
        """Whether it was here before. The rarer kind of return moves the border further."""
        once, again = self._left_once.held_bytes, self._left_again.held_bytes
        if self._left_once.discard(key):
            step = size_bytes * max(1.0, again / max(once, 1))
            self._target_bytes = min(self._target_bytes + step, self._held_bytes())
        elif self._left_again.discard(key):
            step = size_bytes * max(1.0, once / max(again, 1))
            self._target_bytes = max(self._target_bytes - step, 0.0)
        else:
            return False
        return True

    def _bound(self) -> None:
        """Remembers as many bytes of each kind as are held."""
        held = self._held_bytes()
        self._left_once.trim(held)
        self._left_again.trim(held)
        self._target_bytes = min(self._target_bytes, held)
