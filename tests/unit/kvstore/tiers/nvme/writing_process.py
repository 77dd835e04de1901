"""Writes blobs until it is killed: `python -m tests.unit.kvstore.tiers.nvme.writing_process DIRECTORY FIRST`.

Says the number of each blob on a line of its own when its write is DONE; removes each seventh, and says
that as a negative number when it has ended.
"""

import asyncio
import itertools
import sys
from pathlib import Path

from llmserve.kvstore.tiers.base import TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from tests.unit.kvstore.tiers.nvme.blobs import blobs_of, key

MIB = 1 << 20
BATCH = 4
SIZE = 50_000


async def main(directory: Path, first: int) -> None:
    tier = NvmeTier(NvmeSettings(directory, 256 * MIB))
    await tier.open()
    await asyncio.gather(*(write(tier, first + 10_000 * lane) for lane in range(3)))


async def write(tier: NvmeTier, first: int) -> None:
    for start in itertools.count(first, BATCH):
        numbers = range(start, start + BATCH)
        results = await tier.write(blobs_of(numbers, SIZE))
        for number, result in zip(numbers, results, strict=True):
            if result.outcome is TierOutcome.DONE:
                print(number, flush=True)
        gone = [number for number in numbers if number % 7 == 0]
        await tier.remove([key(number) for number in gone])
        for number in gone:
            print(-number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
