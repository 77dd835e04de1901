"""The blocks of a version of an adapter in the device's prefix cache, which go when the version does.

vLLM finds blocks by their hash, and nobody can tell whose block it is from that. So blocks are noted when the
requests that filled them end. Only EngineCore may change the cache, between two steps: it gets one more
utility for that, which the worker calls as it calls vLLM's own (engines/vllm/adapters.py).
"""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vllm.distributed.kv_events import KVEventBatch

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.engine.core import EngineCore

FORGET = "forget_adapter"


class AdapterBlocks:
    """One entry for each block at most. It counts as long as the block still has the same content."""

    def __init__(self) -> None:
        self._noted: dict[int, tuple[str, bytes]] = {}

    def note(self, adapter: str, blocks: "Iterable[KVCacheBlock]") -> None:
        """Called when a request of the adapter ends, with its blocks."""
        cached = (block for block in blocks if block.block_hash is not None)
        self._noted |= {block.block_id: (adapter, block.block_hash) for block in cached}

    def take(self, adapter: str, blocks: "Sequence[KVCacheBlock]") -> set[int]:
        """Returns the blocks in which the adapter's content still is, and drops what was noted of it. blocks:
        all of the device, by id."""
        mine = [(number, content) for number, (owner, content) in self._noted.items() if owner == adapter]
        for number, _ in mine:
            del self._noted[number]
        return {number for number, content in mine if blocks[number].block_hash == content}


def install(core: "type[EngineCore]", noted: AdapterBlocks) -> None:
    """Called in the process of an EngineCore, before its first request."""

    def forget_adapter(self: "EngineCore", adapter: str) -> None:
        """Publishes the events at once: an idle engine makes no step that would."""
        scheduler = self.scheduler
        cache = scheduler.kv_cache_manager
        cache.evict_blocks(noted.take(adapter, cache.block_pool.blocks))
        if events := cache.take_events():
            scheduler.kv_event_publisher.publish(KVEventBatch(ts=time.time(), events=events))

    setattr(core, FORGET, forget_adapter)
