"""The least recently used block goes first: a policy for tests, and the baseline of `bench eviction`."""

from collections.abc import Iterator

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction.base import BlockQueue


class LruPolicy:
    def __init__(self) -> None:
        self._queue = BlockQueue()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, key: BlockHash, size_bytes: int) -> None:
        self._queue.push(key, size_bytes)

    def touch(self, key: BlockHash) -> None:
        self._queue.renew(key)

    def candidates(self) -> Iterator[BlockHash]:
        return iter(self._queue)

    def remove(self, key: BlockHash, *, evicted: bool) -> None:
        self._queue.pop(key)

    def check_integrity(self) -> None:
        self._queue.check_integrity()
