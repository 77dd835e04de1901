"""The contents of a tier below DRAM: its index, and the medium beside it.

Blocks that an earlier process left are in the index from the start, in the medium's order, without a tenant
and without a parent. The first tenant that asks for one takes it over (`adopt`).
"""

from collections.abc import Sequence

from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.blocks import HeldChanged, StoredBlock, block_of, part_key
from llmserve.kvstore.eviction import NOBODY, Added, TierIndex
from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES, Blob, BlobKey, Tier


class TierContents:
    """A block that leaves the index is removed from the medium, too."""

    def __init__(self, tier: Tier, index: TierIndex, held_changed: HeldChanged) -> None:
        self.index = index
        self._tier, self._held_changed = tier, held_changed
        self._strangers: set[BlockHash] = set()  # blocks without a tenant
        self._most_parts = 0  # of any block

    async def take(self) -> int:
        """Takes the medium's blocks into the index, and removes from the medium those without room: the
        capacity may be less than it was. Returns how many blocks were found."""
        sizes: dict[BlockHash, int] = {}
        for key, size in self._tier.held():
            block, part = block_of(key)
            sizes[block] = sizes.get(block, 0) + _charge(size)
            self._most_parts = max(self._most_parts, part + 1)
        found = {block: self.index.add(block, None, size, NOBODY) for block, size in sizes.items()}
        self._strangers = {block for block, added in found.items() if added is Added.HELD}
        self._held_changed(self._strangers, True)
        surplus = [block for block, added in found.items() if added is not Added.HELD]
        await self._tier.remove(self.names(surplus))
        return len(self._strangers)

    def holds(self, key: BlockHash, parts: int) -> bool:
        """Whether the medium has all parts of a block."""
        return all(self._tier.holds([part_key(key, part) for part in range(parts)]))

    def names(self, keys: Sequence[BlockHash]) -> list[BlobKey]:
        """Names of all parts that the blocks can have."""
        return [part_key(key, part) for key in keys for part in range(self._most_parts)]

    def adopt(self, keys: Sequence[BlockHash], tenant: TenantId) -> None:
        """Gives blocks that an earlier process left to a tenant. keys: blocks of a prompt, in order."""
        if not self._strangers:
            return
        for at, key in enumerate(keys):
            if key in self._strangers:
                self._strangers.discard(key)
                self.index.adopt(key, keys[at - 1] if at else None, tenant)

    async def take_room(self, block: StoredBlock, blobs: Sequence[Blob]) -> bool:
        """Makes room in the index and adds the block, pinned. False: there is no room."""
        size = sum(_charge(len(blob.data)) for blob in blobs)
        if block.key in self.index:
            await self.forget([block.key])  # what is left of it: a part was lost
        self._most_parts = max(self._most_parts, len(blobs))
        victims = self.index.make_room(size, block.tenant)
        added = self.index.add(block.key, block.parent, size, block.tenant)
        self.index.pin([block.key])
        gone = [victim.key for victim in victims]
        self._strangers.difference_update(gone)
        self._held_changed(gone, False)
        await self._tier.remove(self.names(gone))
        return added is Added.HELD

    def written(self, key: BlockHash) -> None:
        """Takes note that all of a block is on the medium."""
        self._held_changed((key,), True)

    async def forget(self, keys: Sequence[BlockHash]) -> None:
        """Removes blocks from the index at once, and from the medium by the time this returns."""
        for key in keys:
            self.index.remove(key)
            self._strangers.discard(key)
        self._held_changed(keys, False)
        await self._tier.remove(self.names(keys))


def _charge(size: int) -> int:
    """Bytes that a blob takes on a medium of pages, including its head."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + ALIGNMENT_BYTES
