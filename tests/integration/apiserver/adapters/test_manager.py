"""When a load or an unload is over for the clients of this apiserver."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from llmserve.apiserver.adapters.manager import AdapterManager
from llmserve.apiserver.adapters.names import AdapterNames
from llmserve.config.adapter_source import parse_adapter_source
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.rpc.adapters import encode_named
from llmserve.rpc.gen.llmserve.v1 import router_pb2

SOURCE = parse_adapter_source("dir:/adapters/sql")
EARLIER = NamedAdapter("sql", AdapterDigest("0"), "tiny", str(SOURCE), number=6)
OURS = NamedAdapter("sql", AdapterDigest("1"), "tiny", str(SOURCE), number=7)
LATER = NamedAdapter("sql", AdapterDigest("2"), "tiny", str(SOURCE), number=8)


class Router:
    """Answers that the registration is OURS."""

    async def load(self, *args: Any, **options: Any) -> router_pb2.AdapterStatus:
        return router_pb2.AdapterStatus(adapter=encode_named(OURS))

    unload = load


@pytest.fixture
def names() -> AdapterNames:
    return AdapterNames()


@pytest.fixture
def manager(names: AdapterNames, monkeypatch: pytest.MonkeyPatch) -> AdapterManager:
    monkeypatch.setattr("llmserve.apiserver.adapters.manager._HEAR_SECONDS", 0.01)
    return AdapterManager(Router(), names, lambda: 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("heard", [OURS, LATER, replace(OURS, number=6)])
async def test_a_load_is_over_when_its_version_or_a_later_load_is_heard_of(
    manager: AdapterManager, names: AdapterNames, heard: NamedAdapter
) -> None:
    names.update([heard])
    assert (await manager.load("sql", SOURCE)).adapter.digest == OURS.digest


async def test_an_apiserver_whose_session_was_renewed_meanwhile_hears_with_the_next_one(
    manager: AdapterManager, names: AdapterNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router's echo does not reach it, so the router has answered before it knows."""
    monkeypatch.setattr("llmserve.apiserver.adapters.manager._HEAR_SECONDS", 10.0)
    names.update([EARLIER])
    loading = asyncio.ensure_future(manager.load("sql", SOURCE))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not loading.done()
    names.update([OURS])
    assert (await loading).adapter.digest == OURS.digest


@pytest.mark.parametrize("heard", [[], [EARLIER]])
async def test_a_load_of_which_nothing_is_heard(
    manager: AdapterManager, names: AdapterNames, heard: list[NamedAdapter]
) -> None:
    names.update(heard)
    with pytest.raises(Unavailable, match="adapter sql is ready, but"):
        await manager.load("sql", SOURCE)


@pytest.mark.parametrize("heard", [[], [LATER], [replace(OURS, number=8)]])
async def test_an_unload_is_over_when_the_name_is_gone_or_loaded_again(
    manager: AdapterManager, names: AdapterNames, heard: list[NamedAdapter]
) -> None:
    names.update(heard)
    assert (await manager.unload("sql")).adapter.digest == OURS.digest


async def test_an_unload_of_which_nothing_is_heard(manager: AdapterManager, names: AdapterNames) -> None:
    names.update([OURS])
    with pytest.raises(Unavailable, match="adapter sql is unloaded, but"):
        await manager.unload("sql")
