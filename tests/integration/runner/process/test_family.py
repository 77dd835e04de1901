"""The processes of a cluster in /proc, their end and their shared memory, with real processes."""

import mmap
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmserve.runner.process.family import (
    MEMBER_VARIABLE,
    Family,
    end,
    is_alive,
    members,
    remove_unused_shared_memory,
    shared_memory,
    start_ticks,
)

CLUSTER = uuid.uuid4().hex
Begin = Callable[..., "subprocess.Popen[str]"]
_WAITS = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_{}); print(1, flush=True); sys.stdin.read()"
)
_PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen(('sleep', '300'), env={}, stdout=subprocess.DEVNULL, start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "child.wait()\n"
)


@pytest.fixture
def begin() -> Iterator[Begin]:
    """begin(mark or None, program) -> a process that has written its first line."""
    started: list[subprocess.Popen[str]] = []

    def one(mark: str | None, program: str = _WAITS.format("DFL"), session: bool = False) -> object:
        process = subprocess.Popen(
            (sys.executable, "-I", "-S", "-c", program),
            env={} if mark is None else {MEMBER_VARIABLE: mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=session,
        )
        started.append(process)
        return process

    yield one  # type: ignore[misc]
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_mark_names_a_role_or_the_whole_cluster(begin: Begin) -> None:
    one, other = begin(f"{CLUSTER}/decode-1"), begin(f"{CLUSTER}/decode-10")
    begin(f"{uuid.uuid4().hex}/decode-1")
    nobody: frozenset[int] = frozenset()
    assert members(Family(f"{CLUSTER}/decode-1", nobody)) == {one.pid}
    assert members(Family(f"{CLUSTER}/", nobody)) == {one.pid, other.pid}
    assert members(Family("no-such-cluster/", nobody)) == set()


def test_without_the_mark_the_session_finds_them(begin: Begin) -> None:
    process = begin(None, session=True)
    assert members(Family("no-such-cluster/", frozenset({process.pid}))) == {process.pid}


def test_children_that_left_both_are_found_while_their_parent_lives(begin: Begin) -> None:
    parent = begin(f"{CLUSTER}/router-0", _PARENT)
    child = int(first_line(parent))
    family = Family(f"{CLUSTER}/router-0", frozenset())
    try:
        assert members(family) == {parent.pid, child}
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_caller_is_no_member() -> None:
    assert os.getpid() not in members(Family("x/", frozenset({os.getsid(0)})))


def test_the_end_asks_first(begin: Begin) -> None:
    process = begin(f"{CLUSTER}/a", _WAITS.format("DFL"))
    first_line(process)
    family = Family(f"{CLUSTER}/a", frozenset())
    end(family, term_seconds=20)
    assert process.wait() == -signal.SIGTERM


def test_the_end_kills_those_that_ignore_it(begin: Begin) -> None:
    process = begin(f"{CLUSTER}/a", _WAITS.format("IGN"))
    first_line(process)
    family = Family(f"{CLUSTER}/a", frozenset())
    end(family, term_seconds=0.1)
    assert process.wait() == -signal.SIGKILL


def test_shared_memory_is_removed_when_nobody_uses_it_any_more(segment: Path) -> None:
    with segment.open("x+b") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
    assert str(segment) in shared_memory([os.getpid()])
    remove_unused_shared_memory({str(segment)})
    assert segment.exists()
    mapped.close()
    assert str(segment) not in shared_memory([os.getpid()])
    remove_unused_shared_memory({str(segment), f"{segment}-never-was"})
    assert not segment.exists()


def test_a_process_is_named_by_its_pid_and_start(begin: Begin) -> None:
    process = begin(None)
    started = start_ticks(process.pid)
    assert is_alive(process.pid, started)
    assert not is_alive(process.pid, started - 1), "another process with the same number"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid, started), "it has ended, although its parent has not asked yet"
    process.wait()
    assert not is_alive(process.pid, started)
    with pytest.raises(ProcessLookupError):
        start_ticks(process.pid)
