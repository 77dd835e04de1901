"""The supervisor with fake roles: the order of the start, what it shows, and starts that fail."""

import hashlib
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from llmserve.models.convert import CONVERTER_VERSION
from llmserve.models.files import file_lock

Start = Callable[..., Any]
Alive = Callable[[int], bool]


def test_roles_start_when_those_they_need_are_ready(start: Start) -> None:
    cluster = start("kvmanager-0", "router-0", "decode-0", "apiserver-0")
    cluster.until_ready()
    started = [event[1] for event in cluster.events()]
    assert set(started[:2]) == {"kvmanager-0", "router-0"}
    assert set(started[2:]) == {"decode-0", "apiserver-0"}


def test_progress_and_what_a_role_waits_for_are_shown(start: Start) -> None:
    slow = {"progress": ["loading weights"], "ready": False}
    cluster = start("kvmanager-0", "router-0", "decode-0", behave={"router-0": slow})
    cluster.until_said("loading weights")
    cluster.until_said("for router-0 to be ready")
    assert cluster.pids(name="decode-0") == []


def test_ready_prints_how_to_use_it_and_the_notes_of_the_plan(start: Start) -> None:
    cluster = start("router-0")
    cluster.until_said("llmserve down")
    text = cluster.output()
    assert "Note: this is a test" in text
    assert re.search(r"Ready after \d+ s\. .* is at http://127\.0\.0\.1:1/v1", text)
    assert "curl http://127.0.0.1:1/v1/chat/completions" in text
    assert "OpenAI(base_url=" in text


def test_other_lines_go_to_the_log_and_with_verbose_to_the_console(start: Start) -> None:
    cluster = start("router-0", behave={"router-0": {"stdout": ["hello from stdout"]}}, verbose=True)
    cluster.until_said("router-0 | hello from stdout")
    assert "hello from stdout" in (cluster.run_dir / "logs" / "router-0.log").read_text()


def test_the_state_file_says_what_runs(start: Start, model_dir: Path) -> None:
    cluster = start("kvmanager-0", "router-0", "decode-0", source=f"dir:{model_dir}")
    cluster.until_ready()
    state = cluster.state()
    assert (state.pid, state.is_running, state.model_dir) == (cluster.process.pid, True, str(model_dir))
    assert {role["name"]: role["pid"] for role in state.roles} == {
        event[1]: int(event[2]) for event in cluster.events()
    }
    assert {role["stand"] for role in state.roles} == {"ready"}


def test_roles_get_their_environment(start: Start) -> None:
    cluster = start("router-0")
    cluster.until_ready()
    (pid,) = cluster.pids()
    given = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
    )
    assert "PYTHONHASHSEED" not in given
    assert given["TMPDIR"] == cluster.state().temp_dir
    assert Path(given["TMPDIR"]).is_dir()


def test_a_role_that_cannot_start_stops_the_cluster_with_the_end_of_its_log(
    start: Start, is_alive: Alive
) -> None:
    cluster = start("kvmanager-0", "router-0", behave={"router-0": {"exit_code": 4}})
    assert cluster.exit_code() == 1
    assert len(cluster.pids(name="router-0")) == 3
    assert "router-0 ended before it was ready (exit code 4). The end of" in cluster.output()
    assert cluster.output().splitlines()[-1] == "  boom: no such device"
    assert "Traceback" not in cluster.output()
    assert not any(map(is_alive, cluster.pids()))
    assert cluster.state() is None


def test_a_cause_that_another_try_would_not_cure_ends_the_start_at_once(start: Start) -> None:
    """With one sentence, which names the manifest's line, and not with the end of a log."""
    said = {
        "message": "engine.dtype: vLLM does not start: no such type",
        "lasts": True,
        "key": ["engine", "dtype"],
    }
    cluster = start("router-0", "decode-0", behave={"decode-0": {"exit_code": 1, "failure": said}})
    assert cluster.exit_code() == 1
    assert len(cluster.pids(name="decode-0")) == 1
    line = f"{cluster.run_dir.parent / 'm.yaml'}:1: engine.dtype: vLLM does not start: no such type"
    assert cluster.output().splitlines()[-1] == f"decode-0 cannot start: {line}"
    assert "boom" not in cluster.output()


def test_a_cause_that_may_pass_is_told_instead_of_the_last_line_of_the_log(start: Start) -> None:
    said = {"message": "cannot listen on 127.0.0.1:1: in use", "lasts": False, "key": []}
    cluster = start("router-0", behave={"router-0": {"exit_code": 1, "failure": said}})
    assert cluster.exit_code() == 1
    assert len(cluster.pids(name="router-0")) == 3
    assert cluster.output().count("cannot listen on 127.0.0.1:1: in use") == 3
    assert "boom" not in cluster.output()


def test_what_is_no_failure_line_is_a_line_of_the_log(start: Start) -> None:
    cluster = start("router-0", behave={"router-0": {"stdout": ["LLMSERVE_FAILED {", "LLMSERVE_FAILED 7"]}})
    cluster.until_ready()
    assert "LLMSERVE_FAILED 7" in (cluster.run_dir / "logs" / "router-0.log").read_text()


def test_a_role_that_is_never_ready_is_given_up(start: Start, is_alive: Alive) -> None:
    cluster = start("router-0", behave={"router-0": {"ready": False}}, ready_timeout_seconds=1)
    assert cluster.exit_code() == 1
    assert "router-0 was not ready after 1 s. The end of" in cluster.output()
    assert len(cluster.pids()) <= 1, "it is not tried again; a busy machine may not even have begun it"
    assert not any(map(is_alive, cluster.pids()))


def test_a_model_that_is_not_there_is_said_before_a_role_starts(start: Start, model_dir: Path) -> None:
    (model_dir / "config.json").unlink()
    cluster = start("router-0", source=f"dir:{model_dir}")
    assert cluster.exit_code() == 1
    assert "config.json is missing" in cluster.output().splitlines()[-1]
    assert "Traceback" not in cluster.output()
    assert cluster.events() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_preparation_of_the_model_ends_with_the_supervisor(
    start: Start, is_alive: Alive, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    digest = hashlib.sha256(b"GGUF").hexdigest()[:16]
    lock = tmp_path / "cache" / f"x-{digest}-v{CONVERTER_VERSION}.lock"
    with file_lock(lock, lambda text: None, "tests", 1.0):
        cluster = start("router-0", source=f"gguf:{file}")
        cluster.until_said("waiting for another process that converts x.gguf")
        processes = cluster.members()
        assert processes
        cluster.process.send_signal(number)
        assert cluster.exit_code() == code
        cluster.until(lambda: not any(map(is_alive, processes)), "the end of the preparation")
    assert cluster.events() == []


def test_a_port_in_use_is_said_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cluster = start("router-0", listen={"router-0": address})
        assert cluster.exit_code() == 1
        assert f"{address}: the port is in use by" in cluster.output()
        assert f"pid {os.getpid()}" in cluster.output()
    assert cluster.events() == []


def test_a_second_cluster_in_the_same_place_is_refused(start: Start) -> None:
    first = start("router-0")
    first.until_ready()
    second = start("router-0")
    assert second.exit_code() == 1
    assert f"a cluster already runs in {first.run_dir}" in second.output()
    assert f"pid {first.process.pid}" in second.output()
    assert first.process.poll() is None
    assert first.state().pid == first.process.pid


def test_a_log_directory_that_cannot_be_used_is_said(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cluster = start("router-0", log_dir=tmp_path / "file")
    assert cluster.exit_code() == 1
    assert f"{tmp_path / 'file'}" in cluster.output().splitlines()[-1]
    assert "Traceback" not in cluster.output()


def test_the_page_of_all_metrics_is_served_and_named(start: Start) -> None:
    port = free_port()
    cluster = start("router-0", metrics_port=port)
    cluster.until_ready()
    assert cluster.state().metrics == f"127.0.0.1:{port}"
    cluster.until_said(f"http://127.0.0.1:{port}/metrics")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert b"cluster_process_up" in answer.read()


def test_a_taken_metrics_port_that_the_manifest_names_is_a_failed_start(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        cluster = start("router-0", metrics_port=holder.getsockname()[1])
        assert cluster.exit_code() == 1
    assert "cannot serve metrics on 127.0.0.1" in cluster.output()
    assert cluster.events() == []


def test_a_taken_default_metrics_port_costs_only_the_page(start: Start) -> None:
    with ExitStack() as holding:
        with suppress(OSError):  # somebody else has it: just as well
            holding.enter_context(socket.create_server(("127.0.0.1", 9400)))
        cluster = start("router-0", metrics_port=None)
        cluster.until_ready()
    assert "Note: no page of all metrics: cannot serve metrics on 127.0.0.1:9400" in cluster.output()
    assert cluster.state().metrics == ""
