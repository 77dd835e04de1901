"""The supervisor's reload with a real router: the file is watched, and SIGHUP without a terminal reloads."""

import asyncio
import os
import pty
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from llmserve.config.load import load_manifest
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.leader import RouterAddresses
from llmserve.runner.reloading import Reloading

_MANIFEST = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\nscheduling: {srpt_bias: %s}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llmserve.yaml"
    path.write_text(_MANIFEST % 5)
    return path


@pytest.fixture
async def router(file: Path) -> AsyncIterator[RouterRole]:
    manifest = load_manifest(file)
    role = RouterRole(RouterSettings.of(manifest), listen="127.0.0.1:0", manifest=manifest)
    await role.start()
    yield role
    await role.aclose()


async def test_a_changed_file_is_brought_to_the_router_and_a_bad_one_is_said(
    file: Path, router: RouterRole
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    reloading = Reloading(file, RouterAddresses((f"127.0.0.1:{router.port}",)), said.put_nowait, watch=True)
    task = asyncio.create_task(reloading.run())
    try:
        async with asyncio.timeout(20):
            file.write_text(_MANIFEST % 2)  # noqa: ASYNC240 - a few bytes
            assert await said.get() == "Reload: live: scheduling.srpt_bias: 5.0 -> 2.0"
            file.write_text(_MANIFEST % "fast")  # noqa: ASYNC240
            assert f"nothing was changed: {file}:3: scheduling.srpt_bias" in await said.get()
    finally:
        task.cancel()


async def test_whoever_asks_is_told_although_nothing_was_changed(file: Path, router: RouterRole) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    reloading = Reloading(file, RouterAddresses((f"127.0.0.1:{router.port}",)), said.put_nowait, watch=False)
    task = asyncio.create_task(reloading.run())
    reloading.ask()
    try:
        async with asyncio.timeout(20):
            assert await said.get() == "Reload: nothing has changed"
    finally:
        task.cancel()


def test_sighup_without_a_terminal_reloads_and_stops_nothing(start: Callable[..., Any]) -> None:
    cluster = start("router-0", listen={"router-0": f"127.0.0.1:{free_port()}"})
    cluster.until_ready()
    cluster.process.send_signal(signal.SIGHUP)
    cluster.until_said("Reload: nothing was changed: ")  # the router of this test is a fake
    assert cluster.process.poll() is None
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0


def test_a_terminal_that_is_gone_stops_it(start: Callable[..., Any]) -> None:
    master, slave = pty.openpty()
    cluster = start("router-0", deaf=True, terminal=slave)
    os.close(slave)
    cluster.until_ready()
    os.close(master)
    assert cluster.exit_code() == 0
    assert cluster.order("stopped") == [("stopped", "router-0")]
