"""Batches from their claim to their end, in one service or several, which may die."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore
from openai.types import Batch

from llmserve.apiserver.auth.caller import AccessScope, Caller
from llmserve.apiserver.batches import sender as sender_module
from llmserve.apiserver.batches import service as service_module
from llmserve.apiserver.batches.bucket import BucketStorage, ObjectClaim
from llmserve.apiserver.batches.call import LineAnswer
from llmserve.apiserver.batches.disk import DiskStorage
from llmserve.apiserver.batches.files import FileLimits, NewFile
from llmserve.apiserver.batches.names import OPEN, folder_of, open_path
from llmserve.apiserver.batches.service import BatchService
from llmserve.apiserver.batches.storage import Claim
from llmserve.apiserver.batches.store import ENDED, NewBatch, OpenBatch
from llmserve.core.aio import wait_ended
from llmserve.core.errors import StorageFull
from llmserve.core.ids import TenantId
from tests.integration.apiserver.batches.conftest import CHAT, RED, Bench, eventually, line, pieces

BLUE = TenantId("blue")


@asynccontextmanager
async def serving(bench: Bench) -> AsyncIterator[BatchService]:
    service = BatchService(bench.storage, bench.parts, poll_seconds=0.01)
    service.start()
    try:
        yield service
    finally:
        await service.aclose()


async def until(bench: Bench, batch: Batch, holds: Callable[[Batch], bool], tenant: TenantId = RED) -> Batch:
    found = [batch]

    async def reached() -> bool:
        found[0] = await bench.store.get(tenant, batch.id)
        return holds(found[0])

    await eventually(reached)
    return found[0]


async def running(bench: Bench, lines: int) -> None:
    """Returns when so many lines run."""

    async def reached() -> bool:
        return bench.caller.running == lines

    await eventually(reached)


async def tried(bench: Bench, lines: int) -> bool:
    return len(bench.caller.prompts) >= lines


async def nothing_open(bench: Bench) -> bool:
    return not await bench.storage.names(OPEN)


async def ended(bench: Bench, batch: Batch, tenant: TenantId = RED) -> Batch:
    """Returns the batch when nothing is left of it but its record and its files."""
    name = open_path(folder_of(tenant), batch.id).removeprefix(f"{OPEN}/")

    async def closed() -> bool:
        return name not in await bench.storage.names(OPEN)

    await eventually(closed)
    found = await bench.store.get(tenant, batch.id)
    assert found.status in ENDED
    return found


async def completed(bench: Bench, batch: Batch, lines: int) -> None:
    """Returns when so many lines of a batch have succeeded."""
    await until(
        bench, batch, lambda one: one.request_counts is not None and counts(one)["completed"] == lines
    )


def counts(batch: Batch) -> dict[str, Any]:
    assert batch.request_counts is not None
    return batch.request_counts.to_dict()


async def test_a_whole_batch(bench: Bench) -> None:
    batch = await bench.submit(line("a"), b"bad", line("b"), line("c"))
    bench.caller.answers["b"] = [LineAnswer(400, b"{}")]
    bench.now += 10
    async with serving(bench):
        batch = await ended(bench, batch)
    assert batch.status == "completed"
    assert counts(batch) == {"total": 4, "completed": 2, "failed": 2}
    times = (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert times == (int(bench.now),) * 3
    assert batch.model == "m"
    assert batch.usage is not None
    assert batch.usage.total_tokens == 10
    assert await bench.results(batch.id) == {"a": "a", "c": "c", None: "invalid_json_line", "b": 400}
    assert {one.tenant for one in bench.caller.callers} == {RED}
    assert all(one.background for one in bench.caller.callers)
    assert sorted(bench.caller.request_ids) == [
        f"batch_req_{batch.id.removeprefix('batch_')}_{n}" for n in (1, 3, 4)
    ]
    ends = ("completed", "failed", "refused")
    metric = "apiserver_batch_lines_total"
    assert [bench.registry.get_sample_value(metric, {"result": end}) for end in ends] == [2, 1, 1]
    assert bench.registry.get_sample_value("apiserver_running_batches") == 0


async def test_lines_run_at_the_same_time_up_to_the_limit(bench: Bench) -> None:
    batches = [await bench.submit(*(line(f"{n}-{i}") for i in range(20))) for n in range(2)]
    async with serving(bench):
        for batch in batches:
            assert counts(await ended(bench, batch))["completed"] == 20
    assert bench.caller.most_running == bench.concurrency


async def test_a_cluster_that_is_busy_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_FIRST_PAUSE_SECONDS", 0.001)
    busy: list[LineAnswer | Exception] = [LineAnswer(429, b"{}"), LineAnswer(503, b"{}")]
    bench.caller.answers["a"] = busy
    batch = await bench.submit(line("a"))
    async with serving(bench):
        batch = await ended(bench, batch)
    assert counts(batch)["completed"] == 1
    assert bench.caller.prompts == ["a"] * 3


async def test_a_tenant_that_is_at_its_limit_leaves_the_slots_to_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines pause until the far future; at most as many as there are slots have been tried."""
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.01)  # for one that is found half made
    names = [f"red-{n}" for n in range(3 * bench.concurrency)]
    refusal = LineAnswer(429, b"{}", {b"retry-after": b"3600"})
    bench.caller.answers = {name: [refusal] for name in names}
    limited = await bench.submit(*map(line, names))
    async with serving(bench):
        await eventually(lambda: tried(bench, bench.concurrency))
        other = await bench.submit(line("blue-0"), line("blue-1"), tenant=BLUE)
        assert counts(await ended(bench, other, BLUE))["completed"] == 2
        assert len([name for name in bench.caller.prompts if name in names]) == bench.concurrency
        await bench.store.cancel(RED, limited.id)
        assert (await ended(bench, limited)).status == "cancelled"
        again = await bench.submit(*(line(f"again-{n}") for n in range(20)))
        assert counts(await ended(bench, again))["completed"] == 20
    assert bench.caller.most_running == bench.concurrency


async def test_lines_that_paused_take_a_slot_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_FIRST_PAUSE_SECONDS", 0.001)
    bench = Bench(DiskStorage(tmp_path), concurrency=1)
    names = [str(n) for n in range(5)]
    bench.caller.answers = {name: [LineAnswer(503, b"{}")] for name in names}
    batch = await bench.submit(*map(line, names))
    other = await bench.submit(*map(line, "abc"), tenant=BLUE)
    async with serving(bench):
        assert counts(await ended(bench, batch))["completed"] == len(names)
        assert counts(await ended(bench, other, BLUE))["completed"] == 3
    assert sorted(bench.caller.prompts) == sorted([*names, *names, *"abc"])
    assert bench.caller.most_running == 1


async def test_a_line_on_which_something_breaks_fails_alone(bench: Bench) -> None:
    bench.caller.answers["a"] = [ValueError("broken")]
    batch = await bench.submit(line("a"), line("b"))
    async with serving(bench):
        batch = await ended(bench, batch)
    assert await bench.results(batch.id) == {"a": 500, "b": "b"}


async def test_after_a_death_no_finished_line_runs_twice_and_none_is_lost(bench: Bench) -> None:
    names = [str(n) for n in range(20)]
    bench.caller.hold = set(names[10:])
    batch = await bench.submit(*map(line, names))
    async with serving(bench):
        await completed(bench, batch, 10)
    first = bench.caller.prompts[:]
    bench.caller.go.set()
    bench.caller.prompts.clear()
    async with serving(bench):
        batch = await ended(bench, batch)
    assert sorted(bench.caller.prompts, key=int) == names[10:]
    assert set(first) >= set(names[:10])
    assert counts(batch) == {"total": 20, "completed": 20, "failed": 0}
    assert await bench.results(batch.id) == {name: name for name in names}


async def test_one_of_two_owns_a_batch_and_the_other_takes_over(bench: Bench) -> None:
    bench.caller.hold = {"a"}
    batch = await bench.submit(line("a"))
    async with serving(bench) as first:
        await running(bench, 1)
        async with serving(bench):
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert bench.caller.running == 1
            await first.aclose()
            bench.caller.go.set()
            batch = await ended(bench, batch)
    assert counts(batch)["completed"] == 1
    assert bench.caller.prompts == ["a", "a"]


async def test_a_batch_in_a_bucket_goes_on_when_its_owner_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead one releases nothing: its claim is taken when it was not renewed for long enough."""
    bench = Bench(BucketStorage(MemoryStore(), claim_seconds=1.0))
    bench.caller.hold = {"b"}
    batch = await bench.submit(line("a"), line("b"), b"bad")
    with monkeypatch.context() as dying:
        dying.setattr(ObjectClaim, "release", lambda claim: claim._owner.aclose())
        async with serving(bench):
            await completed(bench, batch, 1)
    bench.caller.go.set()
    async with serving(bench):
        batch = await ended(bench, batch)
    assert bench.caller.prompts == ["a", "b", "b"]
    assert counts(batch) == {"total": 3, "completed": 2, "failed": 1}
    assert await bench.results(batch.id) == {"a": "a", "b": "b", None: "invalid_json_line"}


async def test_a_cancelled_batch_ends_with_what_it_has(bench: Bench) -> None:
    bench.caller.hold = {"b"}
    batch = await bench.submit(line("a"), line("b"), line("c"))
    async with serving(bench):
        await completed(bench, batch, 2)
        await bench.store.cancel(RED, batch.id)
        batch = await ended(bench, batch)
    assert batch.status == "cancelled"
    assert counts(batch) == {"total": 3, "completed": 2, "failed": 0}
    assert batch.cancelling_at is not None
    assert await bench.results(batch.id) == {"a": "a", "c": "c"}
    assert bench.caller.running == 0


async def test_a_result_that_is_written_while_the_batch_is_cancelled_counts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, writing, go = bench.storage.append, asyncio.Event(), asyncio.Event()

    async def slowly(path: str, data: bytes) -> None:
        async def written() -> None:
            await go.wait()
            await append(path, data)

        if path.startswith("journals/"):
            writing.set()
            await wait_ended([written()])  # as a thread that writes

    batch = await bench.submit(line("a"))
    monkeypatch.setattr(bench.storage, "append", slowly)
    async with serving(bench):
        await writing.wait()
        await bench.store.cancel(RED, batch.id)
        await asyncio.sleep(0.05)
        monkeypatch.setattr(bench.storage, "append", append)
        go.set()
        batch = await ended(bench, batch)
    assert (batch.status, await bench.results(batch.id)) == ("cancelled", {"a": "a"})
    assert counts(batch) == {"total": 1, "completed": 1, "failed": 0}


async def test_a_defect_ends_neither_the_batch_nor_the_service(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.01)
    defects: list[Exception] = [TypeError("of the journal"), KeyError("of the search")]
    append, open_batches = bench.storage.append, bench.store.open_batches

    async def appended(path: str, data: bytes) -> None:
        if len(defects) == 2 and path.startswith("journals/"):
            raise defects.pop(0)
        await append(path, data)

    async def found() -> Sequence[OpenBatch]:
        if len(defects) == 1:
            raise defects.pop(0)
        return await open_batches()

    batch = await bench.submit(line("a"))
    monkeypatch.setattr(bench.storage, "append", appended)
    monkeypatch.setattr(bench.store, "open_batches", found)
    async with serving(bench):
        batch = await ended(bench, batch)
    assert (batch.status, await bench.results(batch.id)) == ("completed", {"a": "a"})
    assert "of the journal" in caplog.text
    assert "of the search" in caplog.text


async def test_a_batch_expires_with_an_error_for_each_line_that_is_left(bench: Bench) -> None:
    bench.caller.hold = {"b"}
    batch = await bench.submit(line("a"), line("b"), b"bad", line("c"), seconds=60)
    async with serving(bench):
        await completed(bench, batch, 2)
        bench.now += 60
        batch = await ended(bench, batch)
    assert (batch.status, batch.expired_at) == ("expired", int(bench.now))
    assert counts(batch) == {"total": 4, "completed": 2, "failed": 2}
    assert await bench.results(batch.id) == {
        "a": "a",
        "c": "c",
        "b": "batch_expired",
        None: "invalid_json_line",
    }


async def test_files_that_fail_as_a_whole(bench: Bench) -> None:
    texts = {
        "invalid_json_line": [b"bad"],
        "empty_file": [b" ", b""],
        "too_many_requests": [line(str(n)) for n in range(bench.max_lines + 1)],
    }
    bench.files._limits = FileLimits(10**6, 10**6, 10**4)
    batches = {code: await bench.submit(*lines) for code, lines in texts.items()}
    gone = await bench.submit(line("a"))
    await bench.files.delete(RED, gone.input_file_id)
    async with serving(bench):
        for code, batch in (batches | {"file_not_found": gone}).items():
            batch = await ended(bench, batch)
            assert (batch.status, batch.failed_at) == ("failed", int(bench.now))
            assert batch.errors is not None
            assert [one.code for one in batch.errors.data or []] == [code]
    assert bench.caller.prompts == []


async def test_an_input_that_is_deleted_while_it_runs_is_told(bench: Bench) -> None:
    bench.caller.hold = {"a"}
    batch = await bench.submit(line("a"), line("b"))
    async with serving(bench):
        await completed(bench, batch, 1)
    await bench.files.delete(RED, batch.input_file_id)
    async with serving(bench):
        batch = await ended(bench, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [one.code for one in batch.errors.data or []] == ["file_not_found"]
    assert await bench.results(batch.id) == {"b": "b"}


async def test_the_end_is_reached_after_a_death_before_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the results cannot be written at first, as on a disk that is full."""
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.01)
    batch, keep, tries = await bench.submit(line("a"), line("b"), b"bad"), bench.files.keep, list[str]()

    async def fails(*arguments: Any) -> str | None:
        tries.append(arguments[0].filename)
        if len(tries) == 2:
            raise StorageFull("no room")
        return await keep(*arguments)

    monkeypatch.setattr(bench.files, "keep", fails)
    async with serving(bench):
        batch = await ended(bench, batch)
    assert batch.status == "completed"
    assert [name.rpartition("_")[2] for name in tries] == ["output.jsonl", "error.jsonl", "error.jsonl"]
    assert await bench.results(batch.id) == {"a": "a", "b": "b", None: "invalid_json_line"}
    assert sorted(bench.caller.prompts) == ["a", "b"]


async def test_a_tenant_with_many_batches_leaves_room_for_others(tmp_path: Path) -> None:
    """It runs four of its six at once, and the fifth place is the other's."""
    bench = Bench(DiskStorage(tmp_path), concurrency=5)
    many = [await bench.submit(line(f"red-{n}")) for n in range(6)]
    bench.caller.hold = {f"red-{n}" for n in range(6)}
    other = await bench.submit(line("blue"), tenant=BLUE)
    async with serving(bench):
        assert (await ended(bench, other, BLUE)).status == "completed"
        await running(bench, 4)
        bench.caller.go.set()
        for batch in many:
            assert (await ended(bench, batch)).status == "completed"


async def test_what_died_half_made_is_cleared_in_time(bench: Bench) -> None:
    batch = await bench.submit(line("a"))
    await bench.storage.delete(f"batches/{folder_of(RED)}/{batch.id}.json")
    bench.now += 3601
    async with serving(bench):
        await eventually(lambda: nothing_open(bench))


async def test_a_lost_claim_ends_the_run_and_writes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 60.0)
    bench.caller.hold = {"a"}
    batch = await bench.submit(line("a"))
    claims, claim = list[Claim](), bench.store.claim

    async def claimed(one: OpenBatch) -> Claim | None:
        made = await claim(one)
        claims.extend([made] if made else [])
        return made

    monkeypatch.setattr(bench.store, "claim", claimed)
    async with serving(bench):
        await running(bench, 1)
        claims[0].lost.set()
        await running(bench, 0)
        assert (await bench.store.get(RED, batch.id)).status == "in_progress"


async def test_the_key_s_adapters_hold_for_the_lines(bench: Bench) -> None:
    file = await bench.files.upload(NewFile(RED, "f", "batch"), pieces(line("a")))
    caller = Caller(RED, adapters=frozenset({"sql"}))
    batch = await bench.store.create(caller, NewBatch(CHAT, file.id, "1h", 60.0))
    async with serving(bench):
        await ended(bench, batch)
    (line_s,) = bench.caller.callers
    assert line_s == Caller(
        RED, frozenset({AccessScope.INFERENCE}), adapters=frozenset({"sql"}), background=True
    )
