"""The supervisor with fake roles: killed with SIGKILL, it leaves no process, no shared memory and no file."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

Start = Callable[..., Any]
Alive = Callable[[int], bool]


def test_killing_the_supervisor_leaves_nothing(start: Start, is_alive: Alive, segment: Path) -> None:
    """Not even a grandchild that left the session, when both ignore SIGTERM."""
    stubborn = {"ignore_term": True, "grandchild": "stubborn", "shm": segment.name}
    cluster = start("kvmanager-0", "decode-0", behave={"decode-0": stubborn})
    cluster.until_ready()
    temp_dir, (guard,) = Path(cluster.state().temp_dir), cluster.guards()
    pids = (*cluster.pids(), *cluster.pids("grandchild"), guard)
    assert len(pids) == 4
    assert all(map(is_alive, pids))
    assert segment.exists()
    assert temp_dir.is_dir()
    cluster.process.kill()
    cluster.until(lambda: not any(map(is_alive, pids)), "the end of all processes, the guard last")
    assert not segment.exists()
    assert not temp_dir.exists()
    assert cluster.state() is None


def test_a_killed_guard_is_replaced(start: Start, is_alive: Alive) -> None:
    cluster = start("router-0", behave={"router-0": {"grandchild": "gentle"}})
    cluster.until_ready()
    (old,) = cluster.guards()
    os.kill(old, signal.SIGKILL)
    cluster.until(lambda: [pid for pid in cluster.guards() if pid != old], "a new guard")
    cluster.process.kill()
    cluster.until(lambda: not any(map(is_alive, cluster.pids("grandchild"))), "the end of all processes")
    cluster.until(lambda: cluster.state() is None, "the removal of the state file")


def test_what_a_killed_supervisor_and_guard_left_is_cleared_by_the_next(
    start: Start, is_alive: Alive, segment: Path
) -> None:
    first = start("router-0", behave={"router-0": {"grandchild": "gentle", "shm": segment.name}})
    first.until_ready()
    left = first.pids("grandchild")
    kill_with_guard(first)
    first.until(lambda: first.order("stopped"), "the end of the role, which the kernel told to stop")
    assert all(map(is_alive, left))
    temp_dir = Path(first.state().temp_dir)
    assert temp_dir.exists()
    second = start("router-0", behave={"router-0": {"shm": segment.name}})
    second.until_ready()
    assert not any(map(is_alive, left))
    assert not temp_dir.exists()


def test_the_shared_memory_of_processes_that_were_all_killed_is_removed_by_the_next(
    start: Start, is_alive: Alive, segment: Path
) -> None:
    first = start("router-0", behave={"router-0": {"shm": segment.name, "ignore_term": True}})
    first.until_ready()
    kill_with_guard(first)
    (role,) = first.pids()
    os.kill(role, signal.SIGKILL)
    first.until(lambda: not is_alive(role), "the end of the role")
    assert segment.exists()
    second = start("router-0")
    second.until_ready()
    assert not segment.exists()


def kill_with_guard(cluster: Any) -> None:
    """The guard is stopped first, so that it does nothing between the two deaths."""
    (guard,) = cluster.guards()
    os.kill(guard, signal.SIGSTOP)
    cluster.process.kill()
    cluster.process.wait()
    os.kill(guard, signal.SIGKILL)
