"""Reads what is stored and compares it with its checksums.

Corrupt blocks, and those that the medium no longer has, are dropped. A block that cannot be read now is kept:
the disk may come back, or the key.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import xxhash

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import BlockHash
from llmserve.core.stats import EvictReason
from llmserve.kvstore.blocks import PoolUser, Slot, View
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction.tree import Node
from llmserve.kvstore.store.admin import AnyTier, BlockFilter, StoreAdmin, drop
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.tiers.base import TierOutcome

ADMIN = PoolUser("admin")
READ_LEASE_SECONDS = 60.0
_AT_ONCE = 4  # blocks, each of up to some tens of MiB


class Verdict(StrEnum):
    WHOLE = "whole"
    CORRUPT = "corrupt"
    MISSING = "missing"  # in the index and not on the medium
    UNREADABLE = "unreadable"  # the medium failed, or a key is not there
    GONE = "gone"  # evicted since it was listed


_VERDICTS = {
    TierOutcome.DONE: Verdict.WHOLE,
    TierOutcome.CORRUPT: Verdict.CORRUPT,
    TierOutcome.MISSING: Verdict.MISSING,
}


@dataclass(slots=True)
class VerifyProgress:
    """Progress in one tier. all_blocks: number to be checked. corrupt: blocks found since the last answer.
    reason: why the last block that was not whole was not."""

    tier: str
    all_blocks: int
    blocks: int = 0
    size_bytes: int = 0
    missing_blocks: int = 0
    unreadable_blocks: int = 0
    corrupt: list[BlockHash] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Finding:
    key: BlockHash
    verdict: Verdict
    size_bytes: int
    reason: str = ""


async def verify(
    admin: StoreAdmin, view: View, wanted: BlockFilter, share: float = 1.0
) -> AsyncIterator[VerifyProgress]:
    """An answer for each few blocks, and at least one for each tier. share: part of the blocks, at random."""
    if not 0 < share <= 1:
        raise InvalidRequest(f"the share of blocks to verify must be above 0 and up to 1, got {share}")
    for tier in admin.tiers(wanted.tier):
        nodes = await admin.select(tier, wanted)
        nodes = random.sample(nodes, round(len(nodes) * share) or min(1, len(nodes)))
        so_far = VerifyProgress(tier.name, len(nodes))
        yield so_far
        for start in range(0, len(nodes), _AT_ONCE):
            so_far.corrupt = []
            batch = nodes[start : start + _AT_ONCE]
            for finding in await asyncio.gather(*(_check(tier, view, node) for node in batch)):
                await _note(tier, finding, so_far)
            yield so_far


async def _note(tier: AnyTier, finding: _Finding, so_far: VerifyProgress) -> None:
    so_far.blocks += 1
    so_far.size_bytes += finding.size_bytes
    so_far.reason = finding.reason or so_far.reason
    match finding.verdict:
        case Verdict.CORRUPT:
            so_far.corrupt.append(finding.key)
            await drop(tier, [finding.key], EvictReason.CORRUPT)
        case Verdict.MISSING:
            so_far.missing_blocks += 1
            await drop(tier, [finding.key], EvictReason.CORRUPT)
        case Verdict.UNREADABLE:
            so_far.unreadable_blocks += 1


async def _check(tier: AnyTier, view: View, node: Node) -> _Finding:
    if isinstance(tier, LowerStore):
        return await _check_below(tier, node)
    return await _check_dram(tier, view, node)


async def _check_below(tier: LowerStore, node: Node) -> _Finding:
    key, size = node.key, node.size_bytes
    if tier.is_writing(key):
        return _Finding(key, Verdict.GONE, 0)
    stored = await tier.read(key)
    if not node.held:
        return _Finding(key, Verdict.GONE, 0)
    return _Finding(key, _VERDICTS.get(stored.outcome, Verdict.UNREADABLE), size, stored.reason)


async def _check_dram(tier: DramTier, view: View, node: Node) -> _Finding:
    key = node.key
    if not tier.holds(key):  # gone, or not yet written
        return _Finding(key, Verdict.GONE, 0)
    with leased(tier, key) as slots:
        whole = await asyncio.to_thread(partial(are_whole, view, slots))
    reason = "" if whole else "its checksum is wrong"
    return _Finding(key, Verdict.WHOLE if whole else Verdict.CORRUPT, node.size_bytes, reason)


@contextmanager
def leased(tier: DramTier, key: BlockHash) -> Iterator[tuple[Slot, ...]]:
    """The slots of a stored block of the pool, which stays there meanwhile."""
    lease_id, (slots,) = tier.lease(ADMIN, [key], READ_LEASE_SECONDS)
    try:
        yield slots
    finally:
        tier.release(lease_id)


def are_whole(view: View, slots: Sequence[Slot]) -> bool:
    return all(
        xxhash.xxh3_64_intdigest(view(slot.offset, slot.length_bytes)) == slot.checksum for slot in slots
    )
