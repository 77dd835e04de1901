"""What the user of `llmserve up` sees: a live table, or plain lines without a terminal."""

import json
from collections.abc import Callable, Sequence

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmserve.config.schema import Manifest
from llmserve.runner.board import Board, ProcessRow, ProcessState

_COLOURS = {
    ProcessState.WAITING: "dim",
    ProcessState.STARTING: "yellow",
    ProcessState.READY: "green",
    ProcessState.DRAINED: "dim",
    ProcessState.RESTARTING: "red",
    ProcessState.STOPPING: "yellow",
    ProcessState.STOPPED: "dim",
    ProcessState.FAILED: "bold red",
}
_IN_PROGRESS = (ProcessState.WAITING, ProcessState.STARTING, ProcessState.RESTARTING, ProcessState.STOPPING)


class Console:
    """Made before the board that it shows. A terminal that is gone (a closed pipe) stops nothing: from
    then on nothing is shown. Texts are printed as they are: rich would make markup of [x], and a picture
    of :100:."""

    def __init__(self, rich: RichConsole, clock: Callable[[], float]) -> None:
        self._rich = rich
        self._clock = clock
        self._began = clock()
        self._live: Live | None = None
        self._board: Board | None = None
        self._gone = False

    def follow(self, board: Board) -> None:
        """Shows this board from now on. Call `refresh` a few times a second while it is live."""
        self._board = board
        board.watch(self._row_changed)

    def live(self, on: bool) -> None:
        """Shows a table that redraws itself; without a terminal, a line for each change."""
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

    def _row_changed(self, row: ProcessRow) -> None:
        if self._live is not None:
            self.refresh()
        else:
            self.say(f"{self._seconds():>6.1f} s  {row.name:<14} {row.state:<10} {row.detail}".rstrip())

    def _table(self, board: Board) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("process", "state", "for", ""):
            table.add_column(title, no_wrap=title != "")
        for row in board.rows.values():
            seconds = self._clock() - row.since
            waits = f"{seconds:.0f} s" if row.state in _IN_PROGRESS else ""
            table.add_row(row.name, Text(row.state, _COLOURS[row.state]), waits, Text(row.detail))
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


_OWN_AUTHORITY = (
    "",
    "  With a certificate of your own authority: curl --cacert FILE, and SSL_CERT_FILE=FILE for Python.",
)
_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def ready_banner(
    manifest: Manifest,
    base_urls: tuple[str, ...],
    seconds: float,
    log_dir: str,
    metrics: str = "",
    names: Sequence[str] = (),
) -> str:
    """Returns what `llmserve up` prints when the cluster is ready. metrics: HOST:PORT of the page of all
    metrics; empty when there is none. names: of its models, if these are not those of the manifest."""
    names, url = names or [one.served_name for one in manifest.served], base_urls[0]
    model = names[0]
    keyed = manifest.security.asks_callers
    others = [f"  and at {other}/v1" for other in base_urls[1:]]
    lines = [
        "",
        f"Ready after {seconds:.0f} s. {', '.join(names)} {'is' if len(names) == 1 else 'are'} at {url}/v1",
        *others,
        "",
        *_curl(url, model, keyed),
        "",
        *_python(url, model, keyed),
        *(_OWN_AUTHORITY if manifest.security.tls else ()),
        "",
        f"  Console: {url}/ui",
        f"  Logs: {log_dir}",
        *([f"  Metrics: http://{metrics}/metrics"] if metrics else []),
        "  State: llmserve status    Stop: Ctrl-C, or llmserve down",
        "",
    ]
    return "\n".join(lines)


def _curl(url: str, model: str, keyed: bool) -> list[str]:
    body = json.dumps({"model": model, "messages": _QUESTION, "temperature": 0})
    key = [r'    -H "Authorization: Bearer $LLMSERVE_API_KEY" \ '.rstrip(" ")] if keyed else []
    return [
        f"  curl {url}/v1/chat/completions \\",
        "    -H 'Content-Type: application/json' \\",
        *key,
        f"    -d '{body}'",
    ]


def _python(url: str, model: str, keyed: bool) -> list[str]:
    key = 'os.environ["LLMSERVE_API_KEY"]' if keyed else '"none"'
    return [
        *(["  import os"] if keyed else []),
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{url}/v1", api_key={key})',
        f'  answer = client.chat.completions.create(model="{model}",',
        f'      messages=[{{"role": "user", "content": "{_QUESTION[0]["content"]}"}}], temperature=0)',
        "  print(answer.choices[0].message.content)",
    ]
