"""The processes of a cluster, found in /proc, and their end. Standard library only: the guard runs it
without site-packages. Linux.

A process belongs to a family when it carries the family's mark in its environment, runs in a session
that the family started, or descends from one that does. The mark finds those that left the session,
the session those that overwrote their environment (setproctitle does), descent the rest.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmserve.core.process import START_FIELD, is_resource_tracker, process_fields

MEMBER_VARIABLE = "LLMSERVE_MEMBER"

_POLL_SECONDS = 0.05
_KILL_SECONDS = 10.0
_TRACKER_SECONDS = 3.0
SHARED_MEMORY_DIR = Path("/dev/shm")
_SHM = f"{SHARED_MEMORY_DIR}/"
_DEAD = ("Z", "X")


class Family(NamedTuple):
    """mark: CLUSTER_ID/ for a whole cluster, CLUSTER_ID/NAME for a role."""

    mark: str
    sessions: frozenset[int] = frozenset()


class _Process(NamedTuple):
    parent: int
    session: int
    state: str


def members(family: Family) -> set[int]:
    """Returns the pids of the family that live; never the caller's own."""
    table = _read_table()
    found = {pid for pid, one in table.items() if one.session in family.sessions or _is_marked(pid, family)}
    while grown := {pid for pid, one in table.items() if one.parent in found} - found:
        found |= grown
    return {pid for pid in found - {os.getpid()} if table[pid].state not in _DEAD}


def _read_table() -> dict[int, _Process]:
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                state, parent, _, session, *_ = process_fields(name)
                table[int(name)] = _Process(int(parent), int(session), state)
    return table


def _is_marked(pid: int, family: Family) -> bool:
    with suppress(OSError):
        wanted = f"{MEMBER_VARIABLE}={family.mark}".encode()
        given = _read(f"/proc/{pid}/environ").split(b"\0")
        whole_cluster = family.mark.endswith("/")
        return any(entry == wanted or (whole_cluster and entry.startswith(wanted)) for entry in given)
    return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def end(family: Family, term_seconds: float, segments: Iterable[str] = ()) -> None:
    """Sends SIGTERM and waits up to term_seconds (0: not at all), then kills what is left; removes the shared
    memory that the family had mapped, and `segments`, unless others use it. Blocks for at most term_seconds
    and some 15 s."""
    mapped = {*segments, *shared_memory(members(family))}
    _end_processes(lambda: members(family), term_seconds)
    remove_unused_shared_memory(mapped)


def _end_processes(find: Callable[[], set[int]], term_seconds: float) -> None:
    if term_seconds > 0 and (first := find()):
        send(first, signal.SIGTERM)
        _until_gone(find, term_seconds)
    _kill_until_gone(lambda: {pid for pid in find() if not is_resource_tracker(pid)}, _KILL_SECONDS)
    _until_gone(find, _TRACKER_SECONDS)
    _kill_until_gone(find, _TRACKER_SECONDS)


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _until_gone(find: Callable[[], set[int]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while find() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _kill_until_gone(find: Callable[[], set[int]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def shared_memory(pids: Iterable[int]) -> set[str]:
    """Returns the files of /dev/shm that the processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            lines = _read(f"/proc/{pid}/maps").decode(errors="replace").splitlines()
            found.update(line[line.index(_SHM) :] for line in lines if _SHM in line)
    return {path for path in found if not path.endswith(" (deleted)")}


def remove_unused_shared_memory(paths: set[str]) -> None:
    """Removes those of the files that no process has mapped any more."""
    left = {path for path in paths if os.path.exists(path)}
    if left:
        left -= shared_memory(int(name) for name in os.listdir("/proc") if name.isdigit())
    for path in left:
        with suppress(OSError):
            os.unlink(path)


def start_ticks(pid: int) -> int:
    """Returns the time at which the process started, in clock ticks since boot: with the pid it names one
    process for good. Errors: ProcessLookupError."""
    try:
        return int(process_fields(pid)[START_FIELD])
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None


def is_alive(pid: int, started: int) -> bool:
    """A process that has ended is not alive, even if its parent has not asked for its exit code yet."""
    try:
        fields = process_fields(pid)
    except OSError:
        return False
    return int(fields[START_FIELD]) == started and fields[0] not in _DEAD
