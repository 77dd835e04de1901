"""The checksums that ranks leave beside slots, as the manager reads them."""

from collections.abc import AsyncIterator

import pytest

from llmserve.config.load import parse_manifest
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.blocks import CommitOutcome, PartFill, PoolUser, Prompt, Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.store.build import BuiltStore, StoreParts, build_store
from llmserve.kvstore.store.store import LEASE_SECONDS

MANIFEST = """
kind: LLMServe
models: {primary: {source: hub:org/name}}
storageClasses: [{name: fast, tier: dram, capacity_gb: 0.004}]
"""
SIZE = 4096
WORKER, TENANT = PoolUser("prefill/1"), TenantId("red")
FIRST, SECOND = BlockHash(b"1" * 32), BlockHash(b"2" * 32)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1.0)


@pytest.fixture
async def built(clock: VirtualClock) -> AsyncIterator[BuiltStore]:
    built = build_store(StoreParts.of(parse_manifest(MANIFEST, "m"), "kvmanager-0", {}), clock)
    assert built
    yield built
    await built.aclose()


async def reserve(built: BuiltStore, key: BlockHash, user: PoolUser = WORKER) -> Slot:
    prepared = await built.store.prepare(Prompt(user, TENANT, [key], (SIZE,)))
    [block] = prepared.stores
    return block.slots[0]


def commit(built: BuiltStore, key: BlockHash, slot: Slot) -> CommitOutcome:
    """As the scheduler's half does: it does not know the checksum."""
    [outcome] = built.store.commit([PartFill(key, 0, slot.generation, 0)])
    return outcome


async def test_a_slot_that_was_not_written_has_no_checksum_of_its_last_use(built: BuiltStore) -> None:
    attached, first = AttachedArena(built.arena.description()), await reserve(built, FIRST)
    attached.note_checksum(first, 77)
    attached.close()
    assert commit(built, FIRST, first) is CommitOutcome.STORED
    built.store.dram.drop(FIRST)
    second = await reserve(built, SECOND)
    assert second.page == first.page, "the same memory, with the bytes of the first"
    assert commit(built, SECOND, second) is CommitOutcome.LATE
    assert not built.store.dram.holds(SECOND)


async def test_who_is_late_ends_no_reservation_of_another(built: BuiltStore, clock: VirtualClock) -> None:
    late = await reserve(built, FIRST)
    clock.advance(LEASE_SECONDS + 1)
    now = await reserve(built, FIRST, PoolUser("decode/1"))
    assert commit(built, FIRST, late) is CommitOutcome.LATE
    attached = AttachedArena(built.arena.description())
    attached.note_checksum(now, 77)
    attached.close()
    assert commit(built, FIRST, now) is CommitOutcome.STORED
