"""Stores prompts, with and without an adapter, and drops the adapter: `python -m … DIRECTORY`.

Says "dropping" when all blocks are on the disk and in the bucket, and "dropped" when the adapter's are gone.
Whoever reads that may kill it at either line.
"""

import asyncio
import sys
from pathlib import Path

from llmserve.core.clock import SystemClock
from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.kvstore.blocks import adapter_label, store_key
from llmserve.kvstore.store.admin import StoreAdmin
from tests.unit.kvstore.store.conftest import World, chain
from tests.unit.kvstore.store.storing_process import built

BLOCKS = 4
GONE, OTHER = AdapterDigest("a1" * 32), AdapterDigest("0b" * 32)


def of_adapter(name: str, adapter: AdapterDigest, blocks: int = BLOCKS) -> list[BlockHash]:
    """The keys of a prompt. Another adapter has other hashes, too."""
    return [store_key(key, adapter_label(adapter)) for key in chain(name + adapter[:2], blocks)]


async def main(directory: Path) -> None:
    store = built(directory / "disk", directory / "bucket")
    world = World(store.store, store.arena.view)
    await world.opened()
    for keys in (chain("base", BLOCKS), of_adapter("a", GONE), of_adapter("b", GONE, 16)):
        await world.seen(keys)
    await world.drained()
    print("dropping", flush=True)
    done = await StoreAdmin(store.store, SystemClock()).drop_adapter(GONE)
    assert not done.left_blocks
    print("dropped", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
