"""What a worker does about the router's orders, and what it reports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from llmserve.config.adapter_source import AdapterSource
from llmserve.core.adapters import AdapterOrder, AdapterReport, AdapterTier
from llmserve.core.errors import AdapterUnavailable, EngineDead, InvalidRequest, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters import AdapterFiles
from llmserve.workers.adapters.orders import KEEP_SECONDS, LOOK_SECONDS
from tests.unit.workers.adapters.conftest import Rig

pytestmark = pytest.mark.virtual_time

A, B = AdapterDigest("a"), AdapterDigest("b")
DEVICE, DRAM, DISK, SOURCE = AdapterTier


def order(number: int, name: str = "a", digest: str = "", tier: AdapterTier = DISK) -> AdapterOrder:
    return AdapterOrder(number, f"dir:/{name}", AdapterDigest(digest), tier)


async def obey(rig: Rig, *orders: AdapterOrder, seconds: float = 0.1) -> dict[int, AdapterReport]:
    rig.orders.carry_out(orders)
    await asyncio.sleep(seconds)
    return rig.reports()


async def test_an_order_is_carried_out_and_reported(rig: Rig) -> None:
    rig.orders.carry_out([order(1)])
    assert rig.reports() == {1: AdapterReport(1)}
    await asyncio.sleep(0.1)
    assert rig.reports() == {1: AdapterReport(1, A, 8, 100, DRAM)}, "it warms a slot"
    assert rig.changes == 1
    await asyncio.sleep(1)
    assert rig.reports() == {1: AdapterReport(1, A, 8, 100, DEVICE, load_seconds=1.0)}
    assert rig.changes == 2
    async with rig.pool.hold(A):
        assert rig.reports()[1].running == 1
    assert rig.count("bytes", tier="disk") == 100


async def test_the_same_orders_again_change_nothing(rig: Rig) -> None:
    await obey(rig, order(1), seconds=2)
    changes = rig.changes
    reports = await obey(rig, order(1, digest="a"), seconds=2)
    assert rig.changes == changes
    assert rig.store.fetched == [(A, DISK), (A, DRAM)]
    assert reports[1].tier is DEVICE


async def test_files_go_as_near_as_they_are_wanted_and_stay_if_pinned(rig: Rig) -> None:
    await obey(rig, order(1, tier=DRAM), order(2, "b"), seconds=0.1)
    assert (A, DRAM) in rig.store.places
    await asyncio.sleep(3)
    assert rig.store.held == {(A, DISK), (B, DISK)}, "what is in slots"
    pinned = replace(order(1, tier=DRAM), pinned=True)
    reports = await obey(rig, pinned, order(2, "b"))
    assert rig.store.held == {(A, DISK), (A, DRAM), (B, DISK)}
    assert reports[1].digest == A
    await obey(rig, order(1, tier=DRAM), order(2, "b"))
    assert rig.store.held == {(A, DISK), (B, DISK)}


async def test_what_is_wanted_on_the_device_displaces_what_is_idle(rig: Rig) -> None:
    orders = [order(1, "a"), order(2, "b")]
    await obey(rig, *orders, seconds=3)
    reports = await obey(rig, *orders, order(3, "c", tier=DEVICE), seconds=3)
    assert [reports[number].tier for number in (1, 2, 3)] == [DRAM, DEVICE, DEVICE]
    pinned = replace(order(3, "c", tier=DEVICE), pinned=True)
    await obey(rig, *orders, pinned, seconds=1)
    async with rig.pool.hold(A), rig.pool.hold(B):
        pass
    await asyncio.sleep(3)
    assert rig.reports()[3].tier is DEVICE, "it came back"


async def test_a_slot_that_was_lost_is_wanted_again_when_it_is_asked_for_once_more(rig: Rig) -> None:
    orders = [order(1, "a"), order(2, "b")]
    wanted = replace(order(3, "c", tier=DEVICE), asked=1)
    await obey(rig, *orders, wanted, seconds=3)
    async with rig.pool.hold(A), rig.pool.hold(B):
        pass
    await asyncio.sleep(3)
    assert rig.reports()[3].tier is DRAM, "others took its slot"
    reports = await obey(rig, *orders, replace(wanted, asked=2), seconds=3)
    assert reports[3].tier is DEVICE


async def test_it_stays_at_its_source_if_no_more_is_wanted(rig: Rig) -> None:
    reports = await obey(rig, order(1, digest="a", tier=SOURCE), seconds=0)
    await asyncio.sleep(0)
    assert rig.reports()[1] == AdapterReport(1, A)
    await asyncio.sleep(5)
    assert rig.store.fetched == []
    async with rig.pool.hold(A):
        pass
    assert rig.store.fetched == [(A, DISK), (A, DRAM)]
    reports = await obey(rig, order(2, "b", tier=SOURCE))
    assert reports[2].digest == B, "to compute the digest means to fetch it"


@pytest.mark.parametrize("error", [InvalidRequest("rank 99 is too large"), Unavailable("no answer")])
async def test_what_fails_is_reported_and_tried_again_when_it_is_ordered_again(
    rig: Rig, error: InvalidRequest | Unavailable
) -> None:
    rig.store.errors["a"] = error
    reports = await obey(rig, order(1), order(2, "b"), seconds=60)
    assert reports[1] == AdapterReport(1, error=type(error).__name__, message=error.message)
    assert reports[2].digest == B
    assert await obey(rig, order(1), order(2, "b")) == reports
    assert list(await obey(rig, order(2, "b"))) == [2]
    rig.store.errors.clear()
    assert (await obey(rig, order(1), order(2, "b")))[1].digest == A


@pytest.mark.parametrize("pinned", [False, True])
async def test_without_room_in_memory_it_is_reported_where_it_is(rig: Rig, pinned: bool) -> None:
    """A router takes a worker out of service whose report has an error."""
    rig.store.has_memory = False
    in_dram = replace(order(1, tier=DRAM), pinned=pinned)
    reports = await obey(rig, in_dram, order(2, "b", tier=DEVICE), seconds=0.1)
    assert (reports[1].digest, reports[1].tier, reports[1].error) == (A, DISK, "")
    await asyncio.sleep(3)
    assert [(one.tier, one.error) for one in rig.reports().values()] == [(DEVICE, ""), (DEVICE, "")]
    assert rig.store.held == {(A, DISK), (B, DISK)}


async def test_an_error_that_nobody_foresaw_is_reported(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.store.errors["a"] = OSError("no such device")
    reports = await obey(rig, order(1))
    assert (reports[1].error, reports[1].message) == ("LLMServeError", "OSError: no such device")
    assert "Traceback" in caplog.text


async def test_a_load_that_failed_is_reported_until_one_works(rig: Rig) -> None:
    rig.engine.errors["a"] = InvalidRequest("it is damaged")
    reports = await obey(rig, order(1), seconds=5)
    assert (reports[1].error, reports[1].message) == ("AdapterUnavailable", "it is damaged")
    assert rig.changes == 2
    with pytest.raises(AdapterUnavailable):
        async with rig.pool.hold(A):
            pass
    rig.engine.errors.clear()
    async with rig.pool.hold(A):
        assert rig.reports()[1].error == ""


async def test_at_most_two_are_fetched_at_once_and_what_is_here_waits_for_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    gate = asyncio.Event()

    async def fetch(source: AdapterSource, digest: AdapterDigest) -> AdapterFiles:
        begun.append(str(source))
        await gate.wait()
        raise Unavailable("never mind")

    monkeypatch.setattr(rig.files, "_fetch", fetch)
    rig.store.places.add((AdapterDigest("e"), DISK))
    orders = [order(number, name) for number, name in enumerate("abcd")]
    reports = await obey(rig, *orders, order(4, "e", digest="e"))
    assert begun == ["dir:/a", "dir:/b"]
    assert reports[4].digest == "e"
    gate.set()
    await asyncio.sleep(1)
    assert len(begun) == 4


# -- letting go


async def test_what_is_not_ordered_any_more_leaves_host_and_device(rig: Rig) -> None:
    await obey(rig, order(1), seconds=2)
    changes = rig.changes
    assert await obey(rig, seconds=2) == {}
    assert rig.engine.log == ["+a", "-a", "-a!"]
    assert rig.changes == changes + 1


async def test_its_files_stay_as_long_as_a_router_may_pause_and_then_go(rig: Rig) -> None:
    rig.tasks.spawn("watch", rig.orders.watch())
    await obey(rig, order(1), order(2, "b"), seconds=3)
    await obey(rig, order(2, "b"), seconds=KEEP_SECONDS)
    assert (A, DISK) in rig.store.places
    await asyncio.sleep(LOOK_SECONDS)
    assert rig.store.places == {(B, DISK), (B, DRAM)}
    assert rig.count("bytes", tier="dram") == 100


async def test_a_load_that_fails_for_a_while_leaves_the_files_to_the_next_try(rig: Rig) -> None:
    """The router withdraws the order, pauses, and gives it again."""
    rig.tasks.spawn("watch", rig.orders.watch())
    rig.engine.errors["a"] = Unavailable("no memory just now")
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        assert (await obey(rig, order(1, digest="a"), seconds=2))[1].error == "AdapterUnavailable"
        assert await obey(rig, seconds=pause) == {}
    rig.engine.errors.clear()
    assert (await obey(rig, order(1, digest="a"), seconds=2 * KEEP_SECONDS))[1].tier is DEVICE
    assert rig.store.fetched == [(A, DISK), (A, DRAM)], "it was fetched once"


async def test_files_stay_while_an_order_has_still_to_hold_them(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.tasks.spawn("watch", rig.orders.watch())
    await obey(rig, order(1), seconds=2)
    await obey(rig)
    gate = asyncio.Event()
    monkeypatch.setattr(rig.orders, "_keep", lambda kept: gate.wait())
    await obey(rig, order(2, digest="a"), seconds=2 * KEEP_SECONDS)
    assert (A, DISK) in rig.store.places
    await obey(rig, seconds=LOOK_SECONDS)
    assert rig.store.places == set()


async def test_files_that_cannot_be_removed_do_not_end_the_watch(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def remove(digest: AdapterDigest) -> None:
        raise RuntimeError("it is read-only")

    watch = rig.tasks.spawn("watch", rig.orders.watch())
    await obey(rig, order(1), seconds=2)
    monkeypatch.setattr(rig.files, "remove", remove)
    await obey(rig, seconds=2 * KEEP_SECONDS)
    assert caplog.text.count("cannot be looked at: it is read-only") == 1
    assert not watch.done()


async def test_it_is_reported_until_its_last_leg_has_ended(rig: Rig) -> None:
    await obey(rig, order(1), seconds=2)
    async with rig.pool.hold(A):
        reports = await obey(rig, seconds=60)
        assert (reports[1].running, reports[1].tier) == (1, DEVICE)
    await asyncio.sleep(0.1)
    assert rig.reports() == {}


async def test_ordered_again_while_it_is_let_go_it_stays(rig: Rig) -> None:
    await obey(rig, order(1), seconds=2)
    async with rig.pool.hold(A):
        await obey(rig)
        assert (await obey(rig, order(1)))[1].digest == A
    await asyncio.sleep(5)
    assert rig.engine.log == ["+a"]
    async with rig.pool.hold(A):
        pass


async def test_under_another_number_as_well(rig: Rig) -> None:
    await obey(rig, order(1), seconds=2)
    async with rig.pool.hold(A):
        await obey(rig)
        assert list(await obey(rig, order(2, digest="a"))) == [2]
    await asyncio.sleep(5)
    assert rig.engine.log == ["+a"]


async def test_two_numbers_may_have_one_version(rig: Rig) -> None:
    rig.store.sources["/other"] = "a"
    near = replace(order(2, "other", tier=DEVICE), pinned=True)
    await obey(rig, order(1), near, seconds=2)
    assert rig.pool._slots._pinned == {A}
    assert list(await obey(rig, order(1))) == [1]
    assert rig.pool._slots._pinned == set()
    assert rig.engine.log == ["+a"]
    async with rig.pool.hold(A):
        pass
    assert await obey(rig) == {}
    assert rig.engine.log == ["+a", "-a", "-a!"]


async def test_an_order_that_ends_before_it_was_carried_out(rig: Rig) -> None:
    rig.orders.carry_out([order(1)])
    assert await obey(rig) == {}
    assert rig.store.held == set()
    rig.store.errors["a"] = InvalidRequest("wrong")
    await obey(rig, order(1))
    assert await obey(rig) == {}
    assert rig.engine.log == []


async def test_an_order_without_a_digest_ends_while_another_has_none_yet(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    fetch = rig.files.on_disk

    @asynccontextmanager
    async def slow(source: str, digest: AdapterDigest, *more: Any) -> AsyncIterator[AdapterFiles]:
        if source == "dir:/b":
            await gate.wait()
        async with fetch(source, digest, *more) as files:
            yield files

    monkeypatch.setattr(rig.files, "on_disk", slow)
    rig.store.errors["a"] = InvalidRequest("it is wrong")
    await obey(rig, order(1), order(2, "b"))
    assert await obey(rig, order(2, "b"), seconds=5) == {2: AdapterReport(2)}
    assert rig.engine.log == []
    gate.set()
    await asyncio.sleep(5)
    assert rig.reports()[2] == AdapterReport(2, B, 8, 100, DEVICE, load_seconds=1.0)
    assert rig.engine.log == ["+b"]


@pytest.mark.parametrize("error", [EngineDead("it has died"), RuntimeError("no such adapter")])
async def test_what_cannot_be_let_go_is_gone_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def unload(digest: AdapterDigest, *, forget_blocks: bool = False) -> None:
        raise error

    await obey(rig, order(1), seconds=2)
    monkeypatch.setattr(rig.engine, "unload_adapter", unload)
    changes = rig.changes
    assert await obey(rig, seconds=2) == {}
    assert rig.changes == changes + 1
    assert f"adapter a cannot be let go: {error}" in caplog.text


# -- the host


async def test_it_sees_what_other_processes_do_to_the_files(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = rig.tasks.spawn("watch", rig.orders.watch())
    await obey(rig, order(1), order(2, "b"), order(3, "c"), seconds=5)
    rig.store.vanish("c")
    await asyncio.sleep(10)
    assert rig.reports()[3].tier is SOURCE
    assert rig.count("bytes", tier="dram") == 200
    rig.store.places.add((AdapterDigest("d"), DISK))
    reports = await obey(rig, order(4, "d", "d", tier=SOURCE), seconds=10)
    assert reports[4].tier is DISK

    async def look(digests: object) -> None:
        raise OSError("it is away")

    monkeypatch.setattr(rig.files, "look", look)
    await asyncio.sleep(20)
    assert not watch.done()
