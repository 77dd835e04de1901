"""What the user of `llmserve up` sees."""

import io

import pytest
from rich.console import Console as RichConsole

from llmserve.runner.board import Board, Stand
from llmserve.runner.console import Console

AS_THEY_ARE = ["a [red]b[/] [/nothing] [x]", "file.py:100: in f :smile:", "\\[x] C:\\"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Broken(io.StringIO):
    """A terminal that is gone."""

    writes = 0

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        self.writes += 1
        raise self._error


def made(out: io.StringIO, clock: Clock, terminal: bool = False) -> tuple[Console, Board]:
    rich = RichConsole(file=out, width=100, force_terminal=terminal, color_system=None, highlight=False)
    console, board = Console(rich, clock), Board(["router-0"], clock)
    console.follow(board)
    return console, board


def test_without_a_terminal_each_change_is_a_line() -> None:
    out, clock = io.StringIO(), Clock()
    console, board = made(out, clock)
    console.live(True)
    clock.now = 2.5
    board.set("router-0", Stand.STARTING, "importing", pid=1)
    console.refresh()
    console.live(False)
    assert out.getvalue().split() == ["2.5", "s", "router-0", "starting", "importing"]


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_texts_are_shown_as_they_are(text: str) -> None:
    out = io.StringIO()
    console, board = made(out, Clock())
    console.say(text)
    board.set("router-0", Stand.STARTING, text)
    said, changed = out.getvalue().splitlines()
    assert said == text
    assert changed.endswith(text)


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_a_terminal_has_a_table_with_the_time_so_far(text: str) -> None:
    out, clock = io.StringIO(), Clock()
    console, board = made(out, clock, terminal=True)
    console.live(True)
    board.set("router-0", Stand.STARTING, text)
    clock.now = 7.2
    console.refresh()
    assert text in out.getvalue()
    assert "7 s" in out.getvalue()
    board.set("router-0", Stand.READY)
    console.live(False)
    end = out.getvalue().rstrip().rpartition("process")[2]
    assert "ready" in end
    assert "7 s" not in end, "what is ready is not counted"


def test_long_lines_are_not_cut() -> None:
    out = io.StringIO()
    console, _ = made(out, Clock())
    console.say("x" * 500)
    assert out.getvalue() == "x" * 500 + "\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("closed file")])
def test_a_terminal_that_is_gone_stops_nothing(error: Exception, terminal: bool) -> None:
    out = Broken(error)
    console, board = made(out, Clock(), terminal)
    console.live(True)
    console.say("hello")
    board.set("router-0", Stand.READY)
    seen = out.writes
    console.say("again")
    console.refresh()
    console.live(False)
    assert seen > 0
    assert out.writes == seen, "nothing is shown any more"
