"""A router that is alone saves its adapters and models; they are there when it starts again."""

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.router.leader.file_state import FileState
from llmserve.router.leader.state import StateKey, Term

ADAPTERS = StateKey.ADAPTERS


async def _begun(directory: Path) -> tuple[FileState, Term]:
    state = FileState(VirtualClock(5.0), directory)
    term = await state.campaign("r:1", 60.0)
    assert isinstance(term, Term)
    return state, term


async def test_the_next_process_finds_what_was_saved_last(tmp_path: Path) -> None:
    state, term = await _begun(tmp_path / "run")
    assert await state.load(ADAPTERS) is None
    assert await state.save(term, "one", ADAPTERS)
    assert await state.save(term, "two", ADAPTERS)
    later, _ = await _begun(tmp_path / "run")
    found = await later.load(ADAPTERS)
    assert found is not None
    assert (found.text, found.age_seconds) == ("two", 0.0)
    assert os.listdir(tmp_path / "run") == ["router-adapters.json"]


async def test_models_have_a_file_of_their_own(tmp_path: Path) -> None:
    state, term = await _begun(tmp_path)
    assert await state.save(term, "models", StateKey.MODELS)
    assert await state.save(term, "adapters", ADAPTERS)
    later, _ = await _begun(tmp_path)
    found = [await later.load(key) for key in (StateKey.MODELS, ADAPTERS)]
    assert [one.text for one in found if one] == ["models", "adapters"]


async def test_queues_are_in_no_file(tmp_path: Path) -> None:
    state, term = await _begun(tmp_path)
    assert await state.save(term, "queues")
    assert (await state.load()).text == "queues"  # type: ignore[union-attr]
    later, _ = await _begun(tmp_path)
    assert (await later.load(), await later.load(ADAPTERS)) == (None, None)


async def test_who_does_not_lead_writes_nothing(tmp_path: Path) -> None:
    state, term = await _begun(tmp_path)
    await state.resign(term)
    assert not await state.save(term, "one", ADAPTERS)
    assert os.listdir(tmp_path) == []


async def test_a_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file")
    state, term = await _begun(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        for text in ("one", "two"):
            assert not await state.save(term, text, ADAPTERS), "so it is tried again"
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "adapters are forgotten if this router ends"
    ]
    (tmp_path / "run").unlink()
    assert await state.save(term, "two", ADAPTERS)


async def test_a_file_that_cannot_be_read_is_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "router-adapters.json").mkdir()
    state, _ = await _begun(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert await state.load(ADAPTERS) is None
    assert "what was saved about adapters cannot be read" in caplog.text


async def test_a_save_that_is_cancelled_ends_before_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A term that ends cancels what saves, and saves once more: both write the same file."""
    begun, go_on = threading.Event(), threading.Event()
    written: list[str] = []
    write = FileState._write

    def slow(state: FileState, key: StateKey, text: str) -> bool:
        begun.set()
        go_on.wait(5)
        done = write(state, key, text)
        written.append(text)
        return done

    monkeypatch.setattr(FileState, "_write", slow)
    state, term = await _begun(tmp_path)
    save = asyncio.create_task(state.save(term, "one", ADAPTERS))
    await asyncio.to_thread(begun.wait, 5)
    save.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await save
    assert written == ["one"]
