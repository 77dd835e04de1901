"""The board tells its watchers of changes, and only of these."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from llmserve.config.plan import LocalPlan, ProcessRole, ProcessSpec
from llmserve.runner.board import Board, ProcessRow, ProcessState, StateWriter, addresses_to_bind
from llmserve.runner.environment import RunPaths
from llmserve.runner.state import STATE_NAME, ClusterState, read_state


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """Copies of the rows, as they were told of."""

    def __init__(self, board: Board) -> None:
        self.rows: list[ProcessRow] = []
        board.watch(lambda row: self.rows.append(replace(row)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    clock.now = 5.0
    return Board(["a", "b"], clock)


def test_all_wait_at_first(board: Board) -> None:
    assert list(board.rows) == ["a", "b"]
    assert board.rows["a"] == ProcessRow("a", ProcessState.WAITING, since=5.0)


def test_every_watcher_is_told_of_a_change(board: Board) -> None:
    first, second = Seen(board), Seen(board)
    board.set("b", ProcessState.STARTING, "importing", pid=7)
    assert (
        first.rows == second.rows == [ProcessRow("b", ProcessState.STARTING, "importing", since=5.0, pid=7)]
    )


def test_what_is_known_is_not_told_again(board: Board) -> None:
    board.set("a", ProcessState.STARTING, "importing", pid=7)
    seen = Seen(board)
    board.set("a", ProcessState.STARTING, "importing")
    board.set("a", ProcessState.STARTING, "importing", pid=7)
    assert seen.rows == []
    board.set("a", ProcessState.STARTING, "importing", pid=8)
    assert [row.pid for row in seen.rows] == [8]


def test_a_stand_begins_when_it_changes_not_with_its_detail(board: Board, clock: Clock) -> None:
    board.set("a", ProcessState.STARTING, "importing")
    clock.now = 9.0
    board.set("a", ProcessState.STARTING, "loading")
    assert (board.rows["a"].since, board.rows["a"].detail) == (5.0, "loading")
    board.set("a", ProcessState.READY)
    assert (board.rows["a"].since, board.rows["a"].detail) == (9.0, "")


def test_a_pid_stays_until_another_is_given(board: Board) -> None:
    board.set("a", ProcessState.STARTING, pid=7)
    board.set("a", ProcessState.READY)
    assert board.rows["a"].pid == 7
    board.set("a", ProcessState.STOPPED, pid=0)
    assert board.rows["a"].pid == 0


def test_restarts_are_counted_before_they_are_told_of(board: Board) -> None:
    board.set("a", ProcessState.READY, pid=7)
    seen = Seen(board)
    board.restarting("a", "exit code 1")
    board.restarting("a", "exit code 2")
    assert [(row.state, row.restarts, row.pid) for row in seen.rows] == [
        (ProcessState.RESTARTING, 1, 0),
        (ProcessState.RESTARTING, 2, 0),
    ]


def test_a_process_that_has_not_begun(board: Board) -> None:
    assert board.rows["a"] == ProcessRow("a", ProcessState.WAITING, "", 5.0, 0, 0, 0, frozenset())


def test_hangs_are_counted(board: Board) -> None:
    seen = Seen(board)
    board.hung("a")
    board.hung("a")
    assert (board.rows["a"].hangs, seen.rows) == (2, [])


def test_the_states_are_words_of_the_state_file() -> None:
    words = ["waiting", "starting", "ready", "drained", "restarting", "stopping", "stopped", "failed"]
    assert list(ProcessState) == words


def test_shared_memory_is_told_with_the_next_change(board: Board) -> None:
    seen = Seen(board)
    board.saw_shared_memory("a", frozenset({"/dev/shm/x"}))
    assert seen.rows == []
    board.set("a", ProcessState.READY)
    assert seen.rows[0].shared_memory == {"/dev/shm/x"}


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
def roles() -> Board:
    return Board(["model", "router-0", "decode-0"], lambda: 0.0)


@pytest.fixture
def writer(roles: Board, tmp_path: Path) -> StateWriter:
    plan = LocalPlan((ROUTER, WORKER), ("http://h",))
    paths = RunPaths(tmp_path / "m.yaml", tmp_path, tmp_path / "logs", tmp_path / "temp")
    return StateWriter(roles, plan, paths, cluster_id="id", name="mine", model="my-model")


def read(folder: Path) -> ClusterState:
    state = read_state(folder)
    assert state is not None
    return state


def test_it_is_there_from_the_start(writer: StateWriter, roles: Board, tmp_path: Path) -> None:
    writer.start()
    state = read(tmp_path)
    assert (state.cluster_id, state.name, state.model, state.stand) == ("id", "mine", "my-model", "starting")
    assert (state.log_dir, state.temp_dir) == (str(tmp_path / "logs"), str(tmp_path / "temp"))
    assert state.base_urls == ["http://h"]
    assert state.is_running
    assert [role["name"] for role in state.roles] == ["router-0", "decode-0"], "the model is no role"


def test_a_role_says_where_it_is(writer: StateWriter, roles: Board, tmp_path: Path) -> None:
    writer.start()
    roles.saw_shared_memory("decode-0", frozenset({"/dev/shm/b", "/dev/shm/a"}))
    roles.set("decode-0", ProcessState.READY, pid=12)
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
        "https": False,
        "routers": ["r:3"],
        "kvmanagers": ["k:4", "k:5"],
        "metrics": None,
        "cores": [1, 2],
        "gpus": [0],
        "model": "",
        "log": str(tmp_path / "logs" / "decode-0.log"),
        "shared_memory": ["/dev/shm/a", "/dev/shm/b"],
    }


def test_it_is_written_for_a_stand_or_pid_not_for_progress(
    writer: StateWriter, roles: Board, tmp_path: Path
) -> None:
    writer.start()
    roles.set("router-0", ProcessState.STARTING, "one", pid=1)
    (tmp_path / STATE_NAME).unlink()
    roles.set("router-0", ProcessState.STARTING, "two")
    assert read_state(tmp_path) is None
    roles.set("router-0", ProcessState.STARTING, "two", pid=2)
    assert read(tmp_path).roles[0]["pid"] == 2
    roles.restarting("router-0", "it ended")
    assert (read(tmp_path).roles[0]["restarts"], read(tmp_path).roles[0]["stand"]) == (1, "restarting")


def test_fields_of_the_cluster_stay(writer: StateWriter, roles: Board, tmp_path: Path) -> None:
    writer.start()
    writer.update(model_dir="/models/x")
    writer.update(stand=ProcessState.READY)
    roles.set("router-0", ProcessState.READY)
    assert (read(tmp_path).model_dir, read(tmp_path).stand) == ("/models/x", "ready")


def test_a_file_that_cannot_be_written_stops_nothing(
    writer: StateWriter, roles: Board, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f".{STATE_NAME}.new").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        writer.start()
    assert "the state file cannot be written: [Errno 28] No space left on device" in caplog.text
    roles.set("router-0", ProcessState.READY)
    assert read(tmp_path).roles[0]["stand"] == "ready"


def test_the_addresses_that_a_process_listens_on() -> None:
    """Not those it connects to."""
    assert addresses_to_bind([ROUTER]) == ["127.0.0.1:1", "127.0.0.1:9"]
    assert addresses_to_bind([API, WORKER]) == ["h:5", "w:6"]
    assert addresses_to_bind([CONTROL]) == ["h:2", "127.0.0.1:8", "r:3", "k:4"]
