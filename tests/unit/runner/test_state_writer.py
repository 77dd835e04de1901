"""The state file follows the board."""

import logging
from pathlib import Path

import pytest

from llmserve.config.plan import LocalPlan, ProcessRole, ProcessSpec
from llmserve.runner.board import Board, Stand
from llmserve.runner.environment import RunPaths
from llmserve.runner.state import STATE_NAME, ClusterState, read_state
from llmserve.runner.state_writer import StateWriter, addresses_to_bind

ROUTER = ProcessSpec(ProcessRole.ROUTER, "router-0", "m", listen="127.0.0.1:1", metrics_port=9)
CONTROL = ProcessSpec(
    ProcessRole.CONTROL, "control-0", "m", http="h:2", routers=("r:3",), kvmanagers=("k:4",), metrics_port=8
)
API = ProcessSpec(ProcessRole.APISERVER, "apiserver-0", "m", http="h:5", routers=("r:3",))
WORKER = ProcessSpec(
    ProcessRole.DECODE,
    "decode-0",
    "m",
    listen="w:6",
    routers=("r:3",),
    kvmanagers=("k:4", "k:5"),
    cores=(1, 2),
    gpus=(0,),
)


@pytest.fixture
def board() -> Board:
    return Board(["model", "router-0", "decode-0"], lambda: 0.0)


@pytest.fixture
def writer(tmp_path: Path) -> StateWriter:
    plan = LocalPlan((ROUTER, WORKER), ("http://h",))
    paths = RunPaths(tmp_path / "m.yaml", tmp_path, tmp_path / "logs", tmp_path / "temp")
    return StateWriter("id", "mine", "my-model", plan, paths)


def read(folder: Path) -> ClusterState:
    state = read_state(folder)
    assert state is not None
    return state


def test_it_is_there_from_the_start(writer: StateWriter, board: Board, tmp_path: Path) -> None:
    writer.follow(board)
    state = read(tmp_path)
    assert (state.cluster_id, state.name, state.model, state.stand) == ("id", "mine", "my-model", "starting")
    assert (state.log_dir, state.temp_dir) == (str(tmp_path / "logs"), str(tmp_path / "temp"))
    assert state.base_urls == ["http://h"]
    assert state.is_running
    assert [role["name"] for role in state.roles] == ["router-0", "decode-0"], "the model is no role"


def test_a_role_says_where_it_is(writer: StateWriter, board: Board, tmp_path: Path) -> None:
    writer.follow(board)
    board.saw_shared_memory("decode-0", frozenset({"/dev/shm/b", "/dev/shm/a"}))
    board.set("decode-0", Stand.READY, pid=12)
    router, decode = read(tmp_path).roles
    assert router["metrics"] == "127.0.0.1:9"
    assert decode == {
        "name": "decode-0",
        "role": "decode",
        "pid": 12,
        "stand": "ready",
        "detail": "",
        "restarts": 0,
        "listen": "w:6",
        "http": None,
        "direct": None,
        "routers": ["r:3"],
        "kvmanagers": ["k:4", "k:5"],
        "metrics": None,
        "cores": [1, 2],
        "gpus": [0],
        "log": str(tmp_path / "logs" / "decode-0.log"),
        "shared_memory": ["/dev/shm/a", "/dev/shm/b"],
    }


def test_it_is_written_for_a_stand_or_pid_not_for_progress(
    writer: StateWriter, board: Board, tmp_path: Path
) -> None:
    writer.follow(board)
    board.set("router-0", Stand.STARTING, "one", pid=1)
    (tmp_path / STATE_NAME).unlink()
    board.set("router-0", Stand.STARTING, "two")
    assert read_state(tmp_path) is None
    board.set("router-0", Stand.STARTING, "two", pid=2)
    assert read(tmp_path).roles[0]["pid"] == 2
    board.restarting("router-0", "it ended")
    assert (read(tmp_path).roles[0]["restarts"], read(tmp_path).roles[0]["stand"]) == (1, "restarting")


def test_fields_of_the_cluster_stay(writer: StateWriter, board: Board, tmp_path: Path) -> None:
    writer.follow(board)
    writer.update(model_dir="/models/x")
    writer.update(stand=Stand.READY)
    board.set("router-0", Stand.READY)
    assert (read(tmp_path).model_dir, read(tmp_path).stand) == ("/models/x", "ready")


def test_a_file_that_cannot_be_written_stops_nothing(
    writer: StateWriter, board: Board, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f".{STATE_NAME}.new").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        writer.follow(board)
    assert "No space left on device" in caplog.text
    board.set("router-0", Stand.READY)
    assert read(tmp_path).roles[0]["stand"] == "ready"


def test_the_addresses_that_a_process_listens_on() -> None:
    """Not those it connects to."""
    assert addresses_to_bind([ROUTER]) == ["127.0.0.1:1", "127.0.0.1:9"]
    assert addresses_to_bind([API, WORKER]) == ["h:5", "w:6"]
    assert addresses_to_bind([CONTROL]) == ["h:2", "127.0.0.1:8", "r:3", "k:4"]
