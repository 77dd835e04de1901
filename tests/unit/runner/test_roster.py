"""Processes that come and go are on the board, in the state file and on the page of metrics."""

from pathlib import Path

import pytest

from llmserve.config.plan import LocalPlan, ProcessRole, ProcessSpec
from llmserve.runner.board import Board, ProcessState, StateWriter
from llmserve.runner.environment import RunPaths
from llmserve.runner.exporter import ClusterExporter
from llmserve.runner.logs import LogFollower
from llmserve.runner.roster import ProcessRoster
from llmserve.runner.state import read_state

FIRST = ProcessSpec(ProcessRole.DECODE, "decode-0", "m", metrics_port=1)
ROUTER = ProcessSpec(ProcessRole.ROUTER, "router-0", "m")
SECOND = ProcessSpec(ProcessRole.DECODE, "b-decode-0", "m", metrics_port=2, model="b")


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    (tmp_path / "logs").mkdir()
    return RunPaths(tmp_path / "m.yaml", tmp_path, tmp_path / "logs", tmp_path / "temp")


@pytest.fixture
def board() -> Board:
    return Board(["decode-0", "router-0"], lambda: 0.0)


@pytest.fixture
def roster(board: Board, paths: RunPaths) -> ProcessRoster:
    plan = LocalPlan((FIRST, ROUTER), ("http://h",))
    writer = StateWriter(board, plan, paths, cluster_id="id", name="mine", model="a")
    made = ProcessRoster(plan.processes, board, writer, paths)
    made.exporter = ClusterExporter("demo", plan.processes, board, ("127.0.0.1", 0))
    return made


def names(folder: Path) -> list[str]:
    state = read_state(folder)
    assert state is not None
    return [role["name"] for role in state.roles]


async def test_a_process_comes_and_goes(roster: ProcessRoster, board: Board, paths: RunPaths) -> None:
    roster.add([SECOND])
    assert [worker.name for worker in roster.workers()] == ["decode-0", "b-decode-0"]
    assert paths.log("b-decode-0").exists()
    assert names(paths.run_dir) == ["decode-0", "router-0", "b-decode-0"]
    board.set("b-decode-0", ProcessState.STARTING, "importing", pid=7)
    roster.remove(["b-decode-0", "never-there"])
    assert list(board.rows) == ["decode-0", "router-0"]
    assert names(paths.run_dir) == ["decode-0", "router-0"]
    assert [worker.name for worker in roster.workers()] == ["decode-0"]
    assert roster.exporter is not None
    _, page = await roster.exporter._page("")
    assert b'process="decode-0"' in page


async def test_the_page_has_those_that_are_there(roster: ProcessRoster) -> None:
    exporter = roster.exporter
    assert exporter is not None
    roster.add([SECOND])
    _, page = await exporter._page("")
    assert b'cluster_process_up{cluster="demo",component="decode",process="b-decode-0"} 0.0' in page
    roster.remove(["b-decode-0"])
    exporter._made_at = float("-inf")
    _, page = await exporter._page("")
    assert b'cluster_process_up{cluster="demo",component="decode",process="b-decode-0"}' not in page


def test_logs_that_come_later_are_read_from_their_beginning(tmp_path: Path) -> None:
    a, b = tmp_path / "a.log", tmp_path / "b.log"
    a.write_text("one\n")
    b.write_text("two\n")
    follower = LogFollower({"a": a})
    assert list(follower.new_lines()) == [("a", "one")]
    follower.follow({"a": a, "b": b})
    assert list(follower.new_lines()) == [("b", "two")]
    follower.follow({"b": b})
    a.write_text("one\nthree\n")
    assert list(follower.new_lines()) == []
