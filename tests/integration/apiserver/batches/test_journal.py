"""A result counts when it is durable, once, whatever a process left half."""

import asyncio

import pytest

from llmserve.apiserver.batches import journal as journal_module
from llmserve.apiserver.batches.journal import Journal
from llmserve.apiserver.batches.lines import BatchLine, LineResult, answered
from llmserve.apiserver.batches.names import journal_path
from llmserve.core.errors import StorageFull
from tests.integration.apiserver.batches.conftest import Bench

BATCH = "batch_" + "0" * 32
ANSWER = (
    b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, '
    b'"prompt_tokens_details": {"cached_tokens": 1}}}'
)
RESPONSE = (
    b'{"usage": {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30, '
    b'"output_tokens_details": {"reasoning_tokens": 4}}}'
)


def _result(number: int, status: int = 200, body: bytes = b"{}") -> LineResult:
    return answered(BATCH, BatchLine(number, str(number), "m", b""), status, body)


class SlowStorage:
    """Appends wait for `go`; those of `failures` fail first."""

    def __init__(self, bench: Bench) -> None:
        self.storage, self.appends, self.failures = bench.storage, list[bytes](), 0
        self.go = asyncio.Event()

    async def append(self, path: str, data: bytes) -> None:
        await self.go.wait()
        self.appends.append(data)
        if self.failures:
            self.failures -= 1
            raise StorageFull("no room")
        await self.storage.append(path, data)

    def read(self, path: str) -> object:
        return self.storage.read(path)


async def _loaded(bench: Bench, storage: object = None) -> Journal:
    journal = Journal(storage or bench.storage, BATCH, bench.metrics)  # type: ignore[arg-type]
    await journal.load()
    return journal


async def test_the_next_owner_knows_what_is_done(bench: Bench) -> None:
    journal = await _loaded(bench)
    await journal.write(_result(2, body=ANSWER))
    await journal.write(_result(1, status=400))
    await journal.write(_result(4, body=RESPONSE))
    for one in (journal, await _loaded(bench)):
        assert one.done == {1, 2, 4}
        assert one.counts(9).to_dict() == {"total": 9, "completed": 2, "failed": 1}
        assert (one.usage.input_tokens, one.usage.output_tokens, one.usage.total_tokens) == (13, 22, 35)
        assert one.usage.input_tokens_details.cached_tokens == 1
        assert one.usage.output_tokens_details.reasoning_tokens == 4


async def test_half_an_entry_is_none_and_spoils_no_other(bench: Bench) -> None:
    await (await _loaded(bench)).write(_result(1))
    await bench.storage.append(journal_path(BATCH), _result(2).text[:-9])
    again = await _loaded(bench)
    assert again.done == {1}
    await again.write(_result(3))
    await again.write(_result(2))
    assert (await _loaded(bench)).done == {1, 2, 3}


async def test_a_line_that_two_owners_ran_has_one_result(bench: Bench) -> None:
    first, second = await _loaded(bench), await _loaded(bench)
    await first.write(_result(1, body=b'{"first": 1}'))
    await second.write(_result(1))
    found = [one async for one in (await _loaded(bench)).results()]
    assert [one.answer for one in found] == [{"first": 1}]


async def test_results_that_come_meanwhile_are_written_together(bench: Bench) -> None:
    storage = SlowStorage(bench)
    journal = await _loaded(bench, storage)
    writes = [asyncio.create_task(journal.write(_result(number))) for number in range(1, 10)]
    await asyncio.sleep(0)
    assert journal.done == set()
    storage.go.set()
    await asyncio.gather(*writes)
    assert journal.done == set(range(1, 10))
    assert len(storage.appends) == 2  # the first alone, and all that came meanwhile


async def test_without_room_results_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_FIRST_PAUSE_SECONDS", 0.001)
    storage = SlowStorage(bench)
    storage.failures = 1
    storage.go.set()
    journal = await _loaded(bench, storage)
    await journal.write(_result(1))
    assert journal.done == {1}
    assert len(storage.appends) == 2
    assert bench.registry.get_sample_value("apiserver_batch_storage_failures_total") == 1


async def test_a_write_that_is_cancelled_leaves_the_results_of_others(bench: Bench) -> None:
    storage = SlowStorage(bench)
    journal = await _loaded(bench, storage)
    first, second = (asyncio.create_task(journal.write(_result(number))) for number in (1, 2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    storage.go.set()
    await second
    assert {1, 2} >= journal.done >= {2}
    assert (await _loaded(bench)).done == journal.done
