"""An ordered set of blocks that knows its bytes. The building stone of the policies."""

from collections import OrderedDict
from collections.abc import Iterator

from llmserve.core.ids import BlockHash


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
