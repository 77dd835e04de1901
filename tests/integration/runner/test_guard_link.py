"""The guard by itself: what it was told of ends with its supervisor, and nothing else does."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llmserve.core.errors import StartFailed
from llmserve.core.tasks import TaskOwner
from llmserve.runner import guard_link
from llmserve.runner.guard_link import GuardLink

PATIENCE_SECONDS = 40.0
MARK = f"{uuid.uuid4().hex}/"


class Supervisor:
    """Owns a guard, as a supervisor does."""

    def __init__(self) -> None:
        self._tasks = TaskOwner("test")
        self.guard = GuardLink(MARK, self._tasks)

    async def aclose(self) -> None:
        await self._tasks.aclose()
        await self.guard.aclose()


@pytest.fixture
async def supervisor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    monkeypatch.setattr(guard_link, "_PAUSE_SECONDS", 0.01)
    supervisor = Supervisor()
    yield supervisor
    await supervisor.aclose()


@pytest.fixture
def session() -> Iterator["subprocess.Popen[bytes]"]:
    """A session of its own, without any mark."""
    process = subprocess.Popen(("sleep", "300"), start_new_session=True, env={})
    yield process
    process.kill()
    process.wait()


def make(folder: Path, *files: Path) -> None:
    folder.mkdir()
    for file in files:
        file.write_text(MARK)


async def replaced(link: GuardLink, old: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while link.pid == old:  # noqa: ASYNC110 - no event: it is replaced in the background
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("guard_dies", [False, True])
async def test_it_ends_what_it_was_told_of(
    supervisor: Supervisor,
    session: "subprocess.Popen[bytes]",
    segment: Path,
    tmp_path: Path,
    guard_dies: bool,
) -> None:
    folder, state = tmp_path / "temp", tmp_path / "state"
    make(folder, state, segment)
    supervisor.guard.start()
    supervisor.guard.session_started(session.pid)
    supervisor.guard.shared_memory({str(segment)})
    supervisor.guard.remove_at_end([folder], state)
    if guard_dies:
        old = supervisor.guard.pid
        os.kill(old, signal.SIGKILL)
        await replaced(supervisor.guard, old)
    await supervisor.aclose()
    assert session.poll() == -signal.SIGTERM
    assert not any(path.exists() for path in (segment, folder, state))


@pytest.mark.parametrize("guard_dies", [False, True])
async def test_a_session_that_ended_is_not_its_business_any_more(
    supervisor: Supervisor, session: "subprocess.Popen[bytes]", guard_dies: bool
) -> None:
    """Its number may by then name a session of somebody else."""
    supervisor.guard.start()
    supervisor.guard.session_started(session.pid)
    supervisor.guard.session_ended(session.pid)
    if guard_dies:
        old = supervisor.guard.pid
        os.kill(old, signal.SIGKILL)
        await replaced(supervisor.guard, old)
    await supervisor.aclose()
    assert session.poll() is None


async def test_a_number_that_comes_again_is_told_again(
    supervisor: Supervisor, session: "subprocess.Popen[bytes]"
) -> None:
    supervisor.guard.start()
    for _ in range(2):
        supervisor.guard.session_started(session.pid)
        supervisor.guard.session_ended(session.pid)
    supervisor.guard.session_started(session.pid)
    await supervisor.aclose()
    assert session.poll() == -signal.SIGTERM


async def test_closing_twice_or_before_the_start_is_nothing(supervisor: Supervisor) -> None:
    await supervisor.aclose()
    supervisor.guard.start()
    await supervisor.aclose()
    await supervisor.aclose()
    assert supervisor.guard.pid == 0


async def test_one_that_cannot_be_replaced_at_once_is_replaced_later(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor.guard.start()
    old, failed, spawn = supervisor.guard.pid, asyncio.Event(), supervisor.guard._spawn

    def spied() -> "subprocess.Popen[bytes]":
        try:
            return spawn()
        except StartFailed:
            failed.set()
            raise

    with monkeypatch.context() as patched:
        patched.setattr(supervisor.guard, "_spawn", spied)
        patched.setattr(sys, "executable", str(tmp_path / "no-python"))
        os.kill(old, signal.SIGKILL)
        await asyncio.wait_for(failed.wait(), PATIENCE_SECONDS)
    await replaced(supervisor.guard, old)
