"""What a leg gets when it wants a version, and what becomes of it when something fails."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.errors import AdapterUnavailable, EngineDead, InvalidRequest
from llmserve.core.ids import AdapterDigest
from tests.unit.workers.adapters.conftest import PATIENCE, Rig

pytestmark = pytest.mark.virtual_time

A, B, C = AdapterDigest("a"), AdapterDigest("b"), AdapterDigest("c")
DISK, DRAM = AdapterTier.DISK, AdapterTier.DRAM


class Leg:
    """Holds a version until it is ended or cancelled. got: what it was told of the load."""

    def __init__(self, rig: Rig, digest: AdapterDigest) -> None:
        self.got: AdapterLoad | None = None
        self._over = asyncio.Event()
        self.task = asyncio.create_task(self._run(rig, digest))

    async def _run(self, rig: Rig, digest: AdapterDigest) -> None:
        async with rig.pool.hold(digest) as self.got:
            assert digest in rig.engine.loaded
            await self._over.wait()

    async def end(self) -> None:
        self._over.set()
        await self.task


async def test_a_version_is_loaded_once_for_all_its_legs(rig: Rig) -> None:
    rig.serve("a")
    legs = [Leg(rig, A) for _ in range(3)]
    await asyncio.sleep(0.5)
    assert rig.pool.legs() == {A: 3}
    assert rig.pool.tier(A) is DRAM
    legs.append(Leg(rig, A))
    await asyncio.sleep(0.6)
    legs.append(Leg(rig, A))
    await asyncio.sleep(0)
    assert rig.engine.log == ["+a"]
    assert rig.pool.tier(A) is AdapterTier.DEVICE
    waits = [leg.got for leg in legs]
    assert waits[0] == AdapterLoad(AdapterTier.SOURCE, 1.0)
    assert waits[3] == AdapterLoad(DRAM, 0.5)
    assert waits[4] == AdapterLoad(AdapterTier.DEVICE, 0.0)
    assert rig.count("legs_total", tier="device") == 1
    assert rig.count("load_seconds_sum") == 1
    assert rig.count("used_slots") == 1
    for leg in legs:
        await leg.end()
    assert rig.pool.legs() == {}


async def test_the_files_of_a_loaded_version_stay(rig: Rig) -> None:
    rig.serve("a", "b", "c")
    async with rig.pool.hold(A), rig.pool.hold(B):
        assert rig.store.held == {(A, DISK), (B, DISK)}
    async with rig.pool.hold(C):
        assert rig.store.held == {(B, DISK), (C, DISK)}
    assert rig.engine.log == ["+a", "+b", "-a", "+c"]
    assert rig.count("evictions_total") == 1


async def test_a_version_without_an_order_is_refused(rig: Rig) -> None:
    with pytest.raises(AdapterUnavailable, match="does not hold adapter a"):
        async with rig.pool.hold(A):
            pass
    assert rig.engine.log == []


async def test_an_engine_that_cannot_load_one_runs_the_others(rig: Rig) -> None:
    rig.serve("a", "b")
    rig.engine.errors["a"] = InvalidRequest("it is damaged")
    legs = [Leg(rig, A), Leg(rig, B), Leg(rig, A)]
    await asyncio.sleep(1.1)
    for leg in (legs[0], legs[2]):
        assert isinstance(leg.task.exception(), AdapterUnavailable)
        assert "cannot be loaded by this worker: it is damaged" in str(leg.task.exception())
    assert legs[1].got is not None
    version = rig.pool.version(A)
    assert version is not None
    assert (version.error, version.load_seconds) == ("it is damaged", 0)
    assert rig.count("load_failures_total") == 1
    assert rig.changes == 1, "nobody is on it any more"
    rig.engine.errors.clear()
    await asyncio.sleep(1)
    async with rig.pool.hold(A):
        assert version.error == ""
    await legs[1].end()


async def test_an_error_that_nobody_foresaw_refuses_the_legs_as_well(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.serve("a")
    rig.engine.errors["a"] = OSError("the disk broke")
    with pytest.raises(AdapterUnavailable, match="the disk broke"):
        async with rig.pool.hold(A):
            pass
    assert "Traceback" in caplog.text


async def test_when_the_engine_dies_while_it_loads(rig: Rig) -> None:
    rig.serve("a", "b")
    rig.engine.errors["a"] = rig.engine.errors["b"] = EngineDead("it crashed")
    legs = [Leg(rig, A), Leg(rig, B)]
    await asyncio.wait([leg.task for leg in legs])
    assert [type(leg.task.exception()) for leg in legs] == [EngineDead, EngineDead]


async def test_files_that_vanished_are_fetched_again(rig: Rig) -> None:
    rig.serve("a", "b", "c")
    for name in (A, B, C):
        async with rig.pool.hold(name):
            pass
    assert rig.pool.tier(A) is DRAM
    rig.store.vanish("a")
    await rig.files.look([A])
    assert rig.pool.tier(A) is AdapterTier.SOURCE
    rig.store.fetched.clear()
    legs = [Leg(rig, A) for _ in range(3)]
    await asyncio.sleep(2)
    assert [leg.got is not None for leg in legs] == [True] * 3
    assert rig.store.fetched == [(A, DISK), (A, DRAM)]
    assert rig.count("legs_total", tier="source") == 6
    for leg in legs:
        await leg.end()


async def test_files_that_cannot_be_fetched_again_take_no_slot(rig: Rig) -> None:
    rig.serve("a")
    rig.store.errors["a"] = InvalidRequest("the source has gone")
    with pytest.raises(AdapterUnavailable, match="the source has gone"):
        async with rig.pool.hold(A):
            pass
    assert rig.count("load_failures_total") == 0
    assert rig.changes == 1
    version = rig.pool.version(A)
    assert version is not None
    assert version.error == "the source has gone"


async def test_files_that_vanish_unseen_are_noticed_by_the_load(rig: Rig) -> None:
    rig.serve("a")
    async with rig.files.on_disk("dir:/a", A):
        pass
    rig.store.vanish("a")
    rig.store.errors["a"] = InvalidRequest("the source has gone")
    with pytest.raises(AdapterUnavailable, match="the source has gone"):
        async with rig.pool.hold(A):
            pass
    assert rig.count("load_failures_total") == 1


async def test_a_leg_may_give_up_at_any_time(rig: Rig) -> None:
    rig.serve("a", "b", "c")
    for seconds in (0.0, 0.5, 1.5):
        leg = Leg(rig, A)
        await asyncio.sleep(seconds)
        leg.task.cancel()
        await asyncio.wait({leg.task})
        assert rig.pool.legs() == {}
    holders = [Leg(rig, A), Leg(rig, B)]
    waits = Leg(rig, C)
    await asyncio.sleep(3)
    assert waits.got is None
    waits.task.cancel()
    await asyncio.wait({waits.task})
    assert rig.pool.legs() == {A: 1, B: 1}
    for leg in holders:
        await leg.end()


async def test_a_leg_that_is_cancelled_as_it_starts_gives_its_slot_back(rig: Rig) -> None:
    rig.serve("a")
    leg = Leg(rig, A)
    asyncio.get_running_loop().call_later(1.0, leg.task.cancel)
    await asyncio.wait({leg.task})
    await asyncio.sleep(0.1)
    assert rig.pool.legs() == {}


async def test_nobody_starves_behind_streams_of_loaded_versions(rig: Rig) -> None:
    """Legs of a and b overlap all the time; without a bound, c would never get a slot."""
    rig.serve("a", "b", "c")
    cold: Leg | None = None
    waits: list[Leg] = []
    for tick in range(40):
        waits += [Leg(rig, A), Leg(rig, B)]
        if tick == 5:
            cold = Leg(rig, C)
        await asyncio.sleep(0.5)
        for leg in [leg for leg in waits if leg.got is not None][:-2]:
            waits.remove(leg)
            await leg.end()
    assert cold is not None
    assert cold.got is not None
    assert PATIENCE <= cold.got.seconds <= PATIENCE + 2.5
    await cold.end()
    while waits:
        for leg in [leg for leg in waits if leg.got is not None]:
            waits.remove(leg)
            await leg.end()
        await asyncio.sleep(0.1)


async def test_the_wait_for_a_pinned_slot_ends_without_any_other_event(rig: Rig) -> None:
    rig.serve("b", "c")
    rig.pool.serve(A, "dir:/a", AdapterTier.DEVICE, pinned=True)
    await asyncio.sleep(1)
    async with rig.pool.hold(B), rig.pool.hold(C) as load:
        assert load.seconds == PATIENCE + 1


async def test_served_versions_warm_free_slots_one_after_the_other(rig: Rig) -> None:
    for name in "abc":
        rig.pool.serve(AdapterDigest(name), f"dir:/{name}", DISK)
    await asyncio.sleep(1.5)
    assert rig.engine.log == ["+a"]
    assert rig.changes == 1
    await asyncio.sleep(3)
    assert rig.engine.log == ["+a", "+b"]
    assert rig.changes == 2


async def test_a_slot_is_free_even_if_unloading_failed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(digest: AdapterDigest, *, forget_blocks: bool = False) -> None:
        rig.engine.loaded.discard(digest)
        raise OSError("unheard of")

    rig.serve("a", "b", "c")
    monkeypatch.setattr(rig.engine, "unload_adapter", fail)
    for digest in (A, B, C):
        async with rig.pool.hold(digest):
            pass


# -- letting go


async def test_a_version_is_forgotten_when_its_last_leg_has_ended(rig: Rig) -> None:
    rig.serve("a")
    leg = Leg(rig, A)
    await asyncio.sleep(2)
    going = asyncio.create_task(rig.pool.let_go(A))
    await asyncio.sleep(5)
    assert not going.done()
    with pytest.raises(AdapterUnavailable):
        async with rig.pool.hold(A):
            pass
    await leg.end()
    await going
    assert rig.engine.log == ["+a", "-a", "-a!"]
    assert rig.pool.version(A) is None
    assert rig.count("evictions_total") == 0


async def test_legs_that_waited_before_still_run(rig: Rig) -> None:
    rig.serve("a")
    leg = Leg(rig, A)
    await asyncio.sleep(0.5)
    going = asyncio.create_task(rig.pool.let_go(A))
    await asyncio.sleep(1)
    assert leg.got is not None
    assert not going.done()
    await leg.end()
    await going


async def test_one_that_is_in_no_slot_loses_its_blocks_at_once(rig: Rig) -> None:
    await rig.pool.let_go(A)
    rig.serve("a")
    await rig.pool.let_go(A)
    assert rig.engine.log == ["-a!", "-a!"]


async def test_one_that_is_served_again_stays(rig: Rig) -> None:
    rig.serve("a")
    leg = Leg(rig, A)
    await asyncio.sleep(2)
    going = asyncio.create_task(rig.pool.let_go(A))
    await asyncio.sleep(1)
    going.cancel()
    rig.serve("a")
    await leg.end()
    await asyncio.sleep(1)
    assert rig.engine.log == ["+a"]
    async with rig.pool.hold(A) as load:
        assert load.tier is AdapterTier.DEVICE


async def test_a_leg_whose_version_goes_while_it_is_fetched_is_refused(rig: Rig) -> None:
    rig.serve("a")
    version = rig.pool.version(A)
    assert version is not None
    async with version.fetching:  # as another leg does
        leg = Leg(rig, A)
        await asyncio.sleep(1)
        await rig.pool.let_go(A)
    await asyncio.wait({leg.task})
    assert isinstance(leg.task.exception(), AdapterUnavailable)


async def test_nothing_begins_after_close(rig: Rig) -> None:
    rig.serve("a", "b")
    async with AsyncExitStack() as held:
        await held.enter_async_context(rig.pool.hold(A))
        rig.pool.close()
        leg = Leg(rig, B)
        await asyncio.sleep(5)
        assert leg.got is None
        leg.task.cancel()
    assert rig.engine.log == ["+a"]
