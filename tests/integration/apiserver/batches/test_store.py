"""What is kept of batches."""

from dataclasses import replace

import pytest

from llmserve.apiserver.auth.caller import ALL_SCOPES, AccessScope, Caller
from llmserve.apiserver.batches.names import BATCHES, OPEN, folder_of, journal_path
from llmserve.apiserver.batches.store import NewBatch, OpenBatch
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import TenantId
from llmserve.scheduler.key_limits import KeyLimits
from tests.integration.apiserver.batches.conftest import CHAT, RED, Bench

NEW = NewBatch(CHAT, "file-x", "1h", 3600.0, {"a": "b"}, output_seconds=7200.0)
BLUE = TenantId("blue")


async def test_a_batch_is_its_tenant_s_and_open(bench: Bench) -> None:
    caller = Caller(
        RED,
        ALL_SCOPES,
        frozenset({"tiny"}),
        frozenset({"y", "x"}),
        max_priority=2,
        limits=KeyLimits("k1", requests_per_second=2.0),
        key_id="k1",
        key_digest="ab",
    )
    made = await bench.store.create(caller, NEW)
    assert (made.status, made.expires_at, made.metadata) == ("validating", int(bench.now) + 3600, {"a": "b"})
    assert await bench.store.get(RED, made.id) == made
    for batch_id in (made.id, "batch_x", "../x"):
        with pytest.raises(NotFound):
            await bench.store.get(BLUE, batch_id)
    (one,) = await bench.store.open_batches()
    stored = await bench.store.load(one.folder, one.batch_id)
    assert stored is not None
    assert (stored.batch, stored.output_seconds) == (made, 7200.0)
    assert stored.caller == replace(caller, scopes=frozenset({AccessScope.INFERENCE}), background=True)
    assert (stored.caller.key_id, stored.caller.key_digest) == ("k1", "ab")
    assert not stored.has_ended


async def test_pages_of_the_latest(bench: Bench) -> None:
    made = list[str]()
    for _ in range(5):
        made.insert(0, (await bench.store.create(Caller(RED), NEW)).id)
        bench.now += 1
    await bench.store.create(Caller(BLUE), NEW)
    first, more = await bench.store.page(RED, None, 2)
    assert ([one.id for one in first], more) == (made[:2], True)
    rest, more = await bench.store.page(RED, made[1], 3)
    assert ([one.id for one in rest], more) == (made[2:], False)
    assert await bench.store.page(TenantId("nobody"), None, 2) == ([], False)
    assert [one.batch_id for one in await bench.store.open_batches()][:5] == list(reversed(made))


async def test_cancel(bench: Bench) -> None:
    made = await bench.store.create(Caller(RED), NEW)
    assert await bench.store.cancelling_at(made.id) is None
    bench.now += 5
    for _ in range(2):
        cancelled = await bench.store.cancel(RED, made.id)
        assert (cancelled.status, cancelled.cancelling_at) == ("cancelling", made.created_at + 5)
        bench.now += 1
    (one,) = await bench.store.open_batches()
    stored = await bench.store.load(one.folder, one.batch_id)
    assert stored is not None
    for status in ("finalizing", "completed"):
        stored.reached(status, bench.now)
        await bench.store.save(stored)
        with pytest.raises(InvalidRequest, match=f"is {status}"):
            await bench.store.cancel(RED, made.id)


async def test_close_leaves_only_the_batch(bench: Bench) -> None:
    made = await bench.store.create(Caller(RED), NEW)
    await bench.store.cancel(RED, made.id)
    await bench.storage.append(journal_path(made.id), b"x")
    one = OpenBatch(folder_of(RED), made.id)
    for _ in range(2):
        await bench.store.close(one)
        assert [await bench.storage.names(name) for name in (OPEN, "journals", "cancels")] == [[], [], []]
    assert (await bench.store.get(RED, made.id)).id == made.id


async def test_old_batches_go_when_they_have_ended(bench: Bench) -> None:
    made = [await bench.store.create(Caller(RED), NEW) for _ in range(2)]
    stored = await bench.store.load(folder_of(RED), made[0].id)
    assert stored is not None
    stored.reached("completed", bench.now)
    await bench.store.save(stored)
    bench.now += bench.keep_seconds
    await bench.store.sweep()
    assert len(await bench.storage.names(f"{BATCHES}/{folder_of(RED)}")) == 2
    bench.now += 1
    await bench.store.sweep()
    assert await bench.storage.names(f"{BATCHES}/{folder_of(RED)}") == [f"{made[1].id}.json"]


async def test_a_cancellation_that_came_too_late_goes_with_its_batch(bench: Bench) -> None:
    made = await bench.store.create(Caller(RED), NEW)
    (one,) = await bench.store.open_batches()
    stored = await bench.store.load(one.folder, one.batch_id)
    assert stored is not None
    stored.reached("completed", bench.now)
    await bench.store.close(one)
    await bench.store.cancel(RED, made.id)  # it is not said yet that the batch has ended
    await bench.store.save(stored)
    assert await bench.store.cancelling_at(made.id) is not None
    bench.now += bench.keep_seconds + 1
    await bench.store.sweep()
    assert await bench.store.cancelling_at(made.id) is None


async def test_a_time_is_noted_once(bench: Bench) -> None:
    await bench.store.create(Caller(RED), NEW)
    (one,) = await bench.store.open_batches()
    stored = await bench.store.load(one.folder, one.batch_id)
    assert stored is not None
    stored.reached("in_progress", 5.7)
    stored.reached("in_progress", 9.0)
    assert (stored.batch.status, stored.batch.in_progress_at) == ("in_progress", 5)


async def test_a_batch_that_was_never_made(bench: Bench) -> None:
    made = await bench.store.create(Caller(RED), NEW)
    one = OpenBatch(folder_of(RED), made.id)
    assert not bench.store.was_never_made(one)
    bench.now += 3601
    assert bench.store.was_never_made(one)
