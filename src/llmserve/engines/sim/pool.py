"""The device's KV blocks: their references, and the content that can be reused. Pure.

A block is held (references > 0), idle (unreferenced, but its content is still found by hash; evicted in the
order of release), or blank.
"""

from collections.abc import Iterable, Sequence

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.core.request import KvEvents


class BlockPool:
    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self._references = [0] * total_blocks
        self._hash_of: dict[int, BlockHash] = {}
        self._block_of: dict[BlockHash, int] = {}
        self._adapter_of: dict[BlockHash, AdapterDigest] = {}  # of cached blocks; not those of the base model
        self._blank = list(range(total_blocks - 1, -1, -1))
        self._idle: dict[int, None] = {}  # oldest first
        self._stored: dict[BlockHash, None] = {}
        self._removed: dict[BlockHash, None] = {}

    @property
    def available_blocks(self) -> int:
        """The blocks that `allocate` can give: blank ones, and idle ones by eviction."""
        return len(self._blank) + len(self._idle)

    @property
    def used_blocks(self) -> int:
        return self.total_blocks - self.available_blocks

    def match(self, hashes: Iterable[BlockHash]) -> list[int]:
        """Returns the blocks of the longest cached prefix. `hold` them to keep them."""
        found: list[int] = []
        for block_hash in hashes:
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def idle_among(self, block_ids: Iterable[int]) -> int:
        """Returns how many of these blocks are available now and would not be once held."""
        return sum(1 for block_id in block_ids if self._references[block_id] == 0)

    def hold(self, block_ids: Iterable[int]) -> None:
        """Adds a reference to cached blocks."""
        for block_id in block_ids:
            self._references[block_id] += 1
            self._idle.pop(block_id, None)

    def allocate(self, count: int) -> list[int]:
        """Returns new blocks with one reference each, and evicts as needed. The caller has checked
        available_blocks."""
        assert count <= self.available_blocks, "allocate without checking available_blocks"
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        block_id = self._blank.pop() if self._blank else self._evict()
        self._references[block_id] = 1
        return block_id

    def _evict(self) -> int:
        block_id = next(iter(self._idle))
        del self._idle[block_id]
        self._uncache(self._hash_of[block_id])
        return block_id

    def _uncache(self, block_hash: BlockHash) -> None:
        del self._hash_of[self._block_of.pop(block_hash)]
        self._adapter_of.pop(block_hash, None)
        self._stored.pop(block_hash, None)
        self._removed[block_hash] = None

    def forget(self, adapter: AdapterDigest) -> None:
        """Takes the content of an adapter's requests out of the cache. Blocks that are held stay held."""
        for block_hash in [known for known, owner in self._adapter_of.items() if owner == adapter]:
            block_id = self._block_of[block_hash]
            self._uncache(block_hash)
            if block_id in self._idle:
                del self._idle[block_id]
                self._blank.append(block_id)

    def publish(self, block_id: int, block_hash: BlockHash, adapter: AdapterDigest = BASE_MODEL) -> None:
        """Makes a held block, which is full and computed, available to `match`. Of two blocks with the same
        content the first one is found."""
        if block_hash in self._block_of:
            return
        if adapter:
            self._adapter_of[block_hash] = adapter
        self._hash_of[block_id] = block_hash
        self._block_of[block_hash] = block_id
        self._stored[block_hash] = None

    def release(self, block_ids: Sequence[int]) -> None:
        """Drops a reference of each block. The last blocks of a prefix become idle first, so that a child is
        evicted before its parent."""
        for block_id in reversed(block_ids):
            self._references[block_id] -= 1
            assert self._references[block_id] >= 0, f"block {block_id} released twice"
            if self._references[block_id] == 0:
                self._retire(block_id)

    def _retire(self, block_id: int) -> None:
        if block_id in self._hash_of:
            self._idle[block_id] = None
        else:
            self._blank.append(block_id)

    def has_events(self) -> bool:
        return bool(self._stored or self._removed)

    def take_events(self) -> KvEvents:
        """Returns the changes since the last call."""
        events = KvEvents(stored=tuple(self._stored), removed=tuple(self._removed))
        self._stored, self._removed = {}, {}
        return events

    def check_integrity(self) -> None:
        """Asserts that every block is in exactly one state and that both directions of the cache agree."""
        blank, idle = set(self._blank), set(self._idle)
        held = {block_id for block_id, count in enumerate(self._references) if count > 0}
        assert len(blank) == len(self._blank), "a block is blank twice"
        assert not blank & idle, "a block is blank and idle"
        assert held.isdisjoint(blank | idle), "a held block is free"
        assert held | blank | idle == set(range(self.total_blocks)), "a block is lost"
        assert {block_id: digest for digest, block_id in self._block_of.items()} == self._hash_of
        assert idle <= self._hash_of.keys(), "an idle block has no content"
        assert self._adapter_of.keys() <= self._block_of.keys(), "an adapter has blocks that are not cached"
