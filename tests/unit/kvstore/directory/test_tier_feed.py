"""What a tier holds reaches the directory under the hashes that routers know."""

import asyncio

from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.kvstore.blocks import adapter_label, store_key
from llmserve.kvstore.directory.directory import BlockReport, Holder, KvTier
from llmserve.kvstore.directory.tier_feed import TierFeed

HASHES = [BlockHash(bytes([number]) * 32) for number in range(3)]


async def test_the_directory_knows_blocks_by_their_hashes() -> None:
    reports: list[BlockReport] = []
    reported = asyncio.Event()

    def report(block_report: BlockReport) -> None:
        reports.append(block_report)
        reported.set()

    feed = TierFeed(Holder("kvmanager-0/fast", KvTier.DRAM), report)
    label = adapter_label(AdapterDigest("a1" * 32))
    keys = [HASHES[0], store_key(HASHES[1], label), store_key(HASHES[2], label)]
    feed.changed(keys, True)
    async with asyncio.timeout(30):
        await reported.wait()
    assert list(reports[0].stored) == HASHES
    reported.clear()
    feed.changed(keys[1:], False)
    async with asyncio.timeout(30):
        await reported.wait()
    assert list(reports[1].removed) == HASHES[1:]
    feed.close()
