"""A KV manager that is restarted again and again while an engine stores and loads. It keeps its process, so
the memory of the earlier one stays mapped and its owner seems to live."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from llmserve.kvstore.store.store import BlockStore
from tests.conformance.tiny_cluster import Manager
from tests.integration.engines.store_engine import SECONDS, Engine, chain

RESTARTS, PROMPTS, BLOCKS = 6, 3, 8
pytestmark = pytest.mark.timeout(120)


class Background:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, None]) -> "Future[None]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background()
    yield made
    made.close()


@pytest.fixture
def manager(background: Background, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "disk", free_port())
    background.start(made.start()).result(SECONDS)
    yield made
    background.start(made.stop()).result(SECONDS)


@pytest.mark.parametrize("busy", [True, False], ids=["requests meanwhile", "idle meanwhile"])
def test_an_engine_finds_its_blocks_after_each_restart_and_calls_none_corrupt(
    background: Background, manager: Manager, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """Each request checks every byte that it was given."""
    corrupt: list[bytes] = []
    monkeypatch.setattr(BlockStore, "corrupt", lambda _, key: corrupt.append(key))
    prompts = [chain(f"p{number}", BLOCKS) for number in range(PROMPTS)]
    with Engine([manager.address]) as engine:
        for _ in range(RESTARTS):
            for keys in prompts:
                _until_loaded(engine, keys)
            for step in (manager.stop, manager.start):
                work = background.start(step())
                while busy and not work.done():
                    engine.serve(prompts[0])
                work.result(SECONDS)
    assert corrupt == []


def _until_loaded(engine: Engine, keys: list[Any]) -> None:
    """The link attaches anew after a call that fails. Blocks on their way to the disk are computed."""
    for _ in range(200):
        if engine.serve(keys) == BLOCKS:
            return
    raise AssertionError("the engine never finds its blocks")
