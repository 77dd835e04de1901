"""The board tells its watchers of changes, and only of these."""

from dataclasses import replace

import pytest

from llmserve.runner.board import Board, Row, Stand


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """Copies of the rows, as they were told of."""

    def __init__(self, board: Board) -> None:
        self.rows: list[Row] = []
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
    assert board.rows["a"] == Row("a", Stand.WAITING, since=5.0)


def test_every_watcher_is_told_of_a_change(board: Board) -> None:
    first, second = Seen(board), Seen(board)
    board.set("b", Stand.STARTING, "importing", pid=7)
    assert first.rows == second.rows == [Row("b", Stand.STARTING, "importing", since=5.0, pid=7)]


def test_what_is_known_is_not_told_again(board: Board) -> None:
    board.set("a", Stand.STARTING, "importing", pid=7)
    seen = Seen(board)
    board.set("a", Stand.STARTING, "importing")
    board.set("a", Stand.STARTING, "importing", pid=7)
    assert seen.rows == []
    board.set("a", Stand.STARTING, "importing", pid=8)
    assert [row.pid for row in seen.rows] == [8]


def test_a_stand_begins_when_it_changes_not_with_its_detail(board: Board, clock: Clock) -> None:
    board.set("a", Stand.STARTING, "importing")
    clock.now = 9.0
    board.set("a", Stand.STARTING, "loading")
    assert (board.rows["a"].since, board.rows["a"].detail) == (5.0, "loading")
    board.set("a", Stand.READY)
    assert (board.rows["a"].since, board.rows["a"].detail) == (9.0, "")


def test_a_pid_stays_until_another_is_given(board: Board) -> None:
    board.set("a", Stand.STARTING, pid=7)
    board.set("a", Stand.READY)
    assert board.rows["a"].pid == 7
    board.set("a", Stand.STOPPED, pid=0)
    assert board.rows["a"].pid == 0


def test_restarts_are_counted_before_they_are_told_of(board: Board) -> None:
    board.set("a", Stand.READY, pid=7)
    seen = Seen(board)
    board.restarting("a", "exit code 1")
    board.restarting("a", "exit code 2")
    assert [(row.stand, row.restarts, row.pid) for row in seen.rows] == [
        (Stand.RESTARTING, 1, 0),
        (Stand.RESTARTING, 2, 0),
    ]


def test_shared_memory_is_told_with_the_next_change(board: Board) -> None:
    seen = Seen(board)
    board.saw_shared_memory("a", frozenset({"/dev/shm/x"}))
    assert seen.rows == []
    board.set("a", Stand.READY)
    assert seen.rows[0].shared_memory == {"/dev/shm/x"}
