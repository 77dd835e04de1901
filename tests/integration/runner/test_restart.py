"""The supervisor with fake roles: what ends by itself is started again; a full disk stops nothing."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
Alive = Callable[[int], bool]


def stand(cluster: Any, name: str) -> str:
    return next(str(role["stand"]) for role in cluster.state().roles if role["name"] == name)


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_crashed_role_is_started_again_alone(start: Start, is_alive: Alive, how: str) -> None:
    cluster = start("router-0", "decode-0", behave={"decode-0": {"grandchild": "stubborn"}})
    cluster.until_ready()
    (first,), (grandchild,) = cluster.pids(name="decode-0"), cluster.pids("grandchild")
    if how == "kill":
        os.kill(first, signal.SIGKILL)
    else:
        cluster.crash("decode-0")
    cluster.until(lambda: len(cluster.pids(name="decode-0")) == 2, "the restart")
    assert not is_alive(grandchild), "what the old process left is ended before the new one starts"
    assert len(cluster.pids(name="router-0")) == 1
    cluster.until(lambda: stand(cluster, "decode-0") == "ready", "ready again")
    assert [role["restarts"] for role in cluster.state().roles] == [0, 1]
    assert ("killed by signal 9" if how == "kill" else "exit code 3") in cluster.output()


def test_each_restart_waits_longer(start: Start) -> None:
    cluster = start("router-0")
    for count in (1, 2):
        cluster.until(lambda count=count: len(cluster.pids()) == count, "a start")
        cluster.until(lambda: stand(cluster, "router-0") == "ready", "ready")
        cluster.crash("router-0")
        cluster.until(lambda count=count: len(cluster.pids("crashed")) == count, "a crash")
    cluster.until(lambda: len(cluster.pids()) == 3, "the last start")
    first, second = map(float, re.findall(r"again in ([\d.]+) s", cluster.output()))
    assert 0.2 <= first <= 0.5 <= second <= 1.0
    times = [float(event[3]) for event in cluster.events()]
    assert [event[0] for event in cluster.events()] == ["started", "crashed"] * 2 + ["started"]
    assert times[2] - times[1] >= first - 0.05
    assert times[4] - times[3] >= second - 0.05


def test_a_killed_role_leaves_no_shared_memory(start: Start, segment: Path) -> None:
    cluster = start("router-0", behave={"router-0": {"shm": segment.name}})
    cluster.until_ready()
    os.kill(cluster.pids()[0], signal.SIGKILL)
    cluster.until(lambda: len(cluster.pids()) == 2, "the restart")
    cluster.until(lambda: stand(cluster, "router-0") == "ready", "a segment of its own")
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert not segment.exists()


def test_a_restart_that_cannot_be_made_now_is_tried_again(start: Start) -> None:
    """As when there are no file descriptors or processes to be had for a while."""
    cluster = start("router-0", "kvmanager-0")
    cluster.until_ready()
    logs = cluster.run_dir / "logs"
    logs.rename(cluster.run_dir / "old-logs")
    logs.touch()
    cluster.crash("router-0")
    cluster.until_said("cannot start a process")
    logs.unlink()
    (cluster.run_dir / "old-logs").rename(logs)
    cluster.until(lambda: len(cluster.pids(name="router-0")) == 2, "the restart")
    assert len(cluster.pids(name="kvmanager-0")) == 1


def test_a_full_disk_for_the_state_file_stops_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run" / ".cluster.json.new").symlink_to("/dev/full")
    cluster = start("router-0")
    cluster.until_said("No space left on device")
    cluster.until_ready()
    assert stand(cluster, "router-0") == "ready"
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
