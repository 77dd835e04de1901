"""What a tier below DRAM holds: its book, and the medium beside it.

What an earlier process left counts in the book from the start, in the order the tier tells, of nobody and
following nothing; whoever asks for it first takes it over (`adopt`).
"""

from collections.abc import Sequence

from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.blocks import HeldChanged, StoredBlock, block_of, part_key
from llmserve.kvstore.eviction import NOBODY, Added, TierIndex
from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES, Blob, BlobKey, Tier


class TierContents:
    """What leaves the book is removed from the medium, too."""

    def __init__(self, tier: Tier, book: TierIndex, held_changed: HeldChanged) -> None:
        self.book = book
        self._tier, self._held_changed = tier, held_changed
        self._strangers: set[BlockHash] = set()  # in the book, of nobody
        self._most_parts = 0  # of any block

    async def take(self) -> int:
        """What the medium has goes into the book; what there is no room for, as the capacity may be less than
        it was, goes from the medium. How many blocks were found."""
        sizes: dict[BlockHash, int] = {}
        for key, size in self._tier.held():
            block, part = block_of(key)
            sizes[block] = sizes.get(block, 0) + _charge(size)
            self._most_parts = max(self._most_parts, part + 1)
        found = {block: self.book.add(block, None, size, NOBODY) for block, size in sizes.items()}
        self._strangers = {block for block, added in found.items() if added is Added.HELD}
        self._held_changed(self._strangers, True)
        surplus = [block for block, added in found.items() if added is not Added.HELD]
        await self._tier.remove(self.names(surplus))
        return len(self._strangers)

    def holds(self, key: BlockHash, parts: int) -> bool:
        """All parts are on the medium."""
        return all(self._tier.holds([part_key(key, part) for part in range(parts)]))

    def names(self, keys: Sequence[BlockHash]) -> list[BlobKey]:
        """Of all parts that the blocks can have."""
        return [part_key(key, part) for key in keys for part in range(self._most_parts)]

    def adopt(self, keys: Sequence[BlockHash], tenant: TenantId) -> None:
        """Blocks of a prompt, in order: what an earlier process left of them is this tenant's now."""
        if not self._strangers:
            return
        for at, key in enumerate(keys):
            if key in self._strangers:
                self._strangers.discard(key)
                self.book.adopt(key, keys[at - 1] if at else None, tenant)

    async def take_room(self, block: StoredBlock, blobs: Sequence[Blob]) -> bool:
        """In the book; the block is pinned there."""
        size = sum(_charge(len(blob.data)) for blob in blobs)
        if block.key in self.book:
            await self.forget([block.key])  # what is left of it: a part was lost
        self._most_parts = max(self._most_parts, len(blobs))
        victims = self.book.make_room(size, block.tenant)
        added = self.book.add(block.key, block.parent, size, block.tenant)
        self.book.pin([block.key])
        gone = [victim.key for victim in victims]
        self._strangers.difference_update(gone)
        self._held_changed(gone, False)
        await self._tier.remove(self.names(gone))
        return added is Added.HELD

    def written(self, key: BlockHash) -> None:
        """On the medium, all of it."""
        self._held_changed((key,), True)

    async def forget(self, keys: Sequence[BlockHash]) -> None:
        """They are gone from the book at once, and from the medium when this returns."""
        for key in keys:
            self.book.remove(key)
            self._strangers.discard(key)
        self._held_changed(keys, False)
        await self._tier.remove(self.names(keys))


def _charge(size: int) -> int:
    """What a blob takes on a medium of pages, its head included."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + ALIGNMENT_BYTES
