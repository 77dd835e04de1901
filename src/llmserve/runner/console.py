"""What the user of `llmserve up` sees: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Callable

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmserve.runner.board import Board, Row, Stand

_COLOURS = {
    Stand.WAITING: "dim",
    Stand.STARTING: "yellow",
    Stand.READY: "green",
    Stand.DRAINED: "dim",
    Stand.RESTARTING: "red",
    Stand.STOPPING: "yellow",
    Stand.STOPPED: "dim",
    Stand.FAILED: "bold red",
}
_IN_PROGRESS = (Stand.WAITING, Stand.STARTING, Stand.RESTARTING, Stand.STOPPING)


class Console:
    """Made before the board it shows. A terminal that is gone (a closed pipe) stops nothing: from then on
    nothing is shown. Texts are shown as they are: rich would make markup of [x], and a picture of :100:."""

    def __init__(self, rich: RichConsole, clock: Callable[[], float]) -> None:
        self._rich = rich
        self._clock = clock
        self._began = clock()
        self._live: Live | None = None
        self._board: Board | None = None
        self._gone = False

    def follow(self, board: Board) -> None:
        """Shows this board from now on; call `refresh` a few times a second while it is live."""
        self._board = board
        board.watch(self._row_changed)

    def live(self, on: bool) -> None:
        """A table that redraws itself; without a terminal, a line for each change."""
        if self._live is not None:
            self.refresh()
            self._shielded(self._live.stop)
            self._live = None
        if on and self._rich.is_terminal and self._board is not None:
            self._live = Live(self._table(self._board), console=self._rich, auto_refresh=False)
            self._shielded(self._live.start)

    def refresh(self) -> None:
        live, board = self._live, self._board
        if live is not None and board is not None:
            self._shielded(lambda: live.update(self._table(board), refresh=True))

    def say(self, text: str) -> None:
        self._shielded(lambda: self._rich.print(Text(text), highlight=False, soft_wrap=True))

    def _row_changed(self, row: Row) -> None:
        if self._live is not None:
            self.refresh()
        else:
            self.say(f"{self._seconds():>6.1f} s  {row.name:<14} {row.stand:<10} {row.detail}".rstrip())

    def _table(self, board: Board) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("process", "state", "for", ""):
            table.add_column(title, no_wrap=title != "")
        for row in board.rows.values():
            seconds = self._clock() - row.since
            waits = f"{seconds:.0f} s" if row.stand in _IN_PROGRESS else ""
            table.add_row(row.name, Text(row.stand, _COLOURS[row.stand]), waits, Text(row.detail))
        return table

    def _seconds(self) -> float:
        return self._clock() - self._began

    def _shielded(self, show: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            show()
        except (OSError, ValueError, SystemExit):  # a closed file; rich exits when it is a closed pipe
            self._gone = True
