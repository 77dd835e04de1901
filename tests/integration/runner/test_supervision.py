"""The supervisor with fake roles: start order, progress, crashes, the stop, and that nothing survives."""

import os
import signal
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KVMANAGER = {"role": "kvmanager", "name": "kvmanager-0"}
ROUTER = {"role": "router", "name": "router-0"}
DECODE = {"role": "decode", "name": "decode-0", "after": ["kvmanager-0", "router-0"]}
APISERVER = {"role": "apiserver", "name": "apiserver-0", "after": ["router-0"]}
ALL = [KVMANAGER, ROUTER, DECODE, APISERVER]

Start = Callable[..., Any]
Alive = Callable[[int], bool]


def behaving(role: dict[str, Any], **behaviour: Any) -> dict[str, Any]:
    return {**role, "behaviour": behaviour}


@pytest.fixture
def segment() -> Any:
    path = Path(f"/dev/shm/llmserve-test-{uuid.uuid4().hex}")
    yield path
    path.unlink(missing_ok=True)


def test_starts_in_order_and_stops_in_order(start: Start, is_alive: Alive) -> None:
    cluster = start(ALL)
    cluster.until_ready()
    started = [event[1] for event in cluster.events()]
    assert set(started[:2]) == {"kvmanager-0", "router-0"}
    assert set(started[2:]) == {"decode-0", "apiserver-0"}
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.exit_code() == 0
    stopped = [event[1] for event in cluster.events() if event[0] == "stopped"]
    assert stopped == ["apiserver-0", "decode-0", "router-0", "kvmanager-0"]
    assert not any(map(is_alive, cluster.pids()))
    assert cluster.state() is None


def test_ready_prints_how_to_use_it_and_the_notes_of_the_plan(start: Start) -> None:
    cluster = start(ALL)
    cluster.until_ready()
    cluster.until(lambda: "llmserve down" in cluster.output(), "the greeting")
    text = cluster.output()
    assert "Note: this is a test" in text
    assert "curl http://127.0.0.1:1/v1/chat/completions" in text
    assert "OpenAI(base_url=" in text


def test_progress_and_what_a_role_waits_for_are_shown(start: Start) -> None:
    slow = behaving(ROUTER, progress=["loading weights"], ready=False)
    cluster = start([KVMANAGER, slow, DECODE])
    cluster.until(lambda: "loading weights" in cluster.output(), "progress")
    assert "for router-0 to be ready" in cluster.output()
    assert cluster.pids(name="decode-0") == []


def test_other_lines_go_to_the_log_and_with_verbose_to_the_console(start: Start) -> None:
    cluster = start([behaving(ROUTER, stdout=["hello from stdout"])], verbose=True)
    cluster.until(lambda: "router-0 | hello from stdout" in cluster.output(), "the line")
    assert "hello from stdout" in (cluster.run_dir / "logs" / "router-0.log").read_text()


def test_the_state_file_says_what_runs(start: Start) -> None:
    cluster = start(ALL)
    cluster.until_ready()
    state = cluster.state()
    assert state is not None
    assert (state.stand, state.pid, state.is_running) == ("ready", cluster.process.pid, True)
    assert {role["name"]: role["pid"] for role in state.roles} == {
        event[1]: int(event[2]) for event in cluster.events()
    }
    assert {role["stand"] for role in state.roles} == {"ready"}


def test_roles_get_their_environment(start: Start) -> None:
    cluster = start([ROUTER])
    cluster.until_ready()
    (pid,) = cluster.pids()
    given = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
    )
    assert "PYTHONHASHSEED" not in given
    assert given["HF_HUB_OFFLINE"] == "1"
    assert Path(given["TMPDIR"]).is_dir()
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert not Path(given["TMPDIR"]).exists()


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_crashed_role_is_started_again_alone(start: Start, is_alive: Alive, how: str) -> None:
    cluster = start([ROUTER, behaving({"role": "decode", "name": "decode-0"}, grandchild=True)])
    cluster.until_ready()
    (first,) = cluster.pids(name="decode-0")
    (grandchild,) = cluster.pids("grandchild")
    if how == "kill":
        os.kill(first, signal.SIGKILL)
    else:
        (cluster.run_dir / "crash-decode-0").touch()
    cluster.until(lambda: len(cluster.pids(name="decode-0")) == 2, "the restart")
    assert not is_alive(grandchild), "what the old process left is ended before the new one starts"
    assert len(cluster.pids(name="router-0")) == 1
    cluster.until(lambda: cluster.state().roles[1]["stand"] == "ready", "ready again")
    assert cluster.state().roles[1]["restarts"] == 1


def test_a_role_that_cannot_start_stops_the_cluster_with_the_end_of_its_log(
    start: Start, is_alive: Alive
) -> None:
    cluster = start([KVMANAGER, behaving(ROUTER, exit_code=4)])
    assert cluster.exit_code() == 1
    assert len(cluster.pids(name="router-0")) == 3
    assert "router-0 ended before it was ready (exit code 4)" in cluster.output()
    assert "boom: no such device" in cluster.output().splitlines()[-1]
    assert not any(map(is_alive, cluster.pids()))


def test_a_role_that_is_never_ready_is_given_up(start: Start, is_alive: Alive) -> None:
    cluster = start([behaving(ROUTER, ready=False)], ready_timeout_seconds=0.5)
    assert cluster.exit_code() == 1
    assert "was not ready after 0 s" in cluster.output() or "was not ready" in cluster.output()
    assert not any(map(is_alive, cluster.pids()))


def test_a_second_signal_forces(start: Start, is_alive: Alive) -> None:
    cluster = start([behaving(ROUTER, ignore_term=True, grandchild=True)])
    cluster.until_ready()
    cluster.process.send_signal(signal.SIGINT)
    cluster.until(lambda: ["asked", "router-0"] in cluster.events(), "the first signal")
    assert is_alive(cluster.pids()[0])
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.exit_code() == 130
    assert not any(map(is_alive, (*cluster.pids(), *cluster.pids("grandchild"))))


def test_a_role_that_ignores_sigterm_is_killed_at_its_deadline(start: Start, is_alive: Alive) -> None:
    cluster = start([behaving(ROUTER, ignore_term=True)])
    cluster.until_ready()
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert "it did not stop in time" in cluster.output()
    assert not any(map(is_alive, cluster.pids()))


def test_killing_the_supervisor_leaves_nothing(start: Start, is_alive: Alive, segment: Path) -> None:
    stubborn = behaving(
        {"role": "decode", "name": "decode-0"}, ignore_term=True, grandchild=True, shm=segment.name
    )
    cluster = start([KVMANAGER, stubborn])
    cluster.until_ready()
    temp_dir = Path(cluster.state().temp_dir)
    assert segment.exists()
    assert temp_dir.is_dir()
    cluster.process.kill()
    pids = (*cluster.pids(), *cluster.pids("grandchild"))
    cluster.until(lambda: not any(map(is_alive, pids)), "the end of all processes")
    cluster.until(lambda: not (segment.exists() or temp_dir.exists()), "the removal of shm and files")
    cluster.until(lambda: cluster.state() is None, "the removal of the state file")


def test_killing_a_role_leaves_no_shared_memory(start: Start, segment: Path) -> None:
    cluster = start([behaving(ROUTER, shm=segment.name)])
    cluster.until_ready()
    os.kill(cluster.pids()[0], signal.SIGKILL)
    cluster.until(lambda: len(cluster.pids()) == 2, "the restart")
    cluster.until(lambda: cluster.state().roles[0]["stand"] == "ready", "a segment of its own")
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.exit_code() == 0
    assert not segment.exists()


def test_a_killed_guard_is_replaced(start: Start, is_alive: Alive) -> None:
    cluster = start([behaving(ROUTER, ignore_term=True)])
    cluster.until_ready()
    (guard,) = guards_of(cluster.process.pid)
    os.kill(guard, signal.SIGKILL)
    cluster.until(lambda: set(guards_of(cluster.process.pid)) - {guard}, "a new guard")
    cluster.process.kill()
    cluster.until(lambda: not any(map(is_alive, cluster.pids())), "the end of all processes")


def guards_of(supervisor: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == supervisor and "llmserve.runner.guard" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_second_cluster_in_the_same_place_is_refused(start: Start) -> None:
    first = start([ROUTER])
    first.until_ready()
    second = start([ROUTER])
    assert second.exit_code() == 1
    assert f"a cluster already runs in {first.run_dir}" in second.output()
    assert str(first.process.pid) in second.output()
    assert first.process.poll() is None


def test_what_a_killed_supervisor_and_guard_left_is_cleared_by_the_next(
    start: Start, is_alive: Alive
) -> None:
    first = start([behaving(ROUTER, ignore_term=True)])
    first.until_ready()
    (guard,) = guards_of(first.process.pid)
    os.kill(guard, signal.SIGSTOP)
    first.process.kill()
    first.process.wait()
    os.kill(guard, signal.SIGKILL)
    (old,) = first.pids()
    assert is_alive(old)
    second = start([ROUTER])
    second.until_ready()
    assert not is_alive(old)


def test_a_port_in_use_is_said_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = start([{**ROUTER, "listen": f"127.0.0.1:{port}"}])
        assert cluster.exit_code() == 1
        assert f"127.0.0.1:{port}: the port is in use by" in cluster.output()
        assert f"pid {os.getpid()}" in cluster.output()
    assert cluster.events() == []


def test_a_model_that_is_not_there_is_said_before_a_role_starts(start: Start, model_dir: Path) -> None:
    (model_dir / "config.json").unlink()
    cluster = start([ROUTER])
    assert cluster.exit_code() == 1
    assert "config.json is missing" in cluster.output()
    assert cluster.events() == []
