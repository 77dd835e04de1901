"""Slots go to who has the fewest."""

import asyncio

import pytest

from llmserve.apiserver.batches.slots import LineSlots
from llmserve.core.ids import TenantId

RED, BLUE = TenantId("red"), TenantId("blue")


class Takers:
    def __init__(self, slots: LineSlots) -> None:
        self.slots, self.order = slots, list[str]()

    async def take(self, tenant: TenantId, name: str) -> None:
        await self.slots.take(tenant)
        self.order.append(name)

    def begin(self, tenant: TenantId, *names: str) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.take(tenant, name)) for name in names]


async def _turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_tenant_that_comes_late_gets_its_half() -> None:
    slots = LineSlots(2)
    takers = Takers(slots)
    reds = takers.begin(RED, "r1", "r2", "r3", "r4")
    await _turns()
    blues = takers.begin(BLUE, "b1", "b2")
    await _turns()
    assert takers.order == ["r1", "r2"]
    for _ in range(4):
        slots.give_back(RED if takers.order.count("b1") == 0 or len(takers.order) % 2 else BLUE)
        await _turns()
    assert takers.order == ["r1", "r2", "b1", "r3", "b2", "r4"]
    await asyncio.gather(*reds, *blues)


@pytest.mark.parametrize("granted", [False, True])
async def test_a_taker_that_is_cancelled_leaves_its_slot_to_others(granted: bool) -> None:
    slots = LineSlots(1)
    takers = Takers(slots)
    await slots.take(RED)
    (gone,) = takers.begin(RED, "gone")
    (next_one,) = takers.begin(BLUE, "next")
    await _turns()
    if granted:  # at the same moment
        next_one.cancel()
        slots.give_back(RED)
        gone.cancel()
    else:
        gone.cancel()
        await _turns()
        slots.give_back(RED)
    await asyncio.gather(gone, next_one, return_exceptions=True)
    assert takers.order == ([] if granted else ["next"])
    if not granted:
        slots.give_back(BLUE)
    await asyncio.wait_for(slots.take(RED), 30)
