"""Stores prompts through a whole store until it is killed: `python -m … DIRECTORY`.

Says the number of each prompt on a line of its own when its blocks are on the disk.
"""

import asyncio
import itertools
import sys
from pathlib import Path

from llmserve.config.load import parse_manifest
from llmserve.core.clock import SystemClock
from llmserve.kvstore.store.build import BuiltStore, StoreParts, build_store
from llmserve.kvstore.tiers.base import TierOutcome
from tests.unit.kvstore.store.conftest import PART_BYTES, World, chain

BLOCKS = 6
MIB_IN_GIB = 1 / 1024


def built(directory: Path, bucket: Path | None = None) -> BuiltStore:
    """A store in DRAM, on a disk and, where one is named, in a bucket, which is a directory here."""
    settings = f"capacity_gb: {64 * MIB_IN_GIB}, location: file://{bucket}, write: through"
    manifest = parse_manifest(
        f"""
kind: LLMServe
models: {{primary: {{source: hub:org/name}}}}
storageClasses:
  - {{name: fast, tier: dram, capacity_gb: {16 * MIB_IN_GIB}}}
  - {{name: disk, tier: nvme, capacity_gb: {64 * MIB_IN_GIB}, location: {directory}, write: through}}
  {f"- {{name: bucket, tier: object, {settings}}}" if bucket else ""}
""",
        "m.yaml",
    )
    store = build_store(StoreParts.of(manifest, "kvmanager", {}), SystemClock())
    assert store
    store.store.dram.slots.slabs.expect(PART_BYTES)
    return store


async def main(directory: Path) -> None:
    store = built(directory)
    world = World(store.store, store.arena.view)
    await store.store.open()
    for number in itertools.count():
        await world.seen(chain(f"p{number}", BLOCKS))
        await world.drained()
        assert store.store.lower[0].outcomes["write", TierOutcome.DONE] == (number + 1) * BLOCKS
        print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
