"""`llmserve logs`: shows what the processes of a cluster write, by time."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import cycle
from typing import Protocol

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from llmserve.cli.cluster import add_cluster, asked_for_k8s
from llmserve.cli.command import EXIT_OK, Command, add_mode, whole
from llmserve.cli.logs.files import log_files
from llmserve.cli.logs.lines import LogLine, last, parse_since
from llmserve.core.errors import Unavailable

_ABOUT = """\
Shows what the processes of the cluster here (or of -f, --run-dir) have written, merged by time, each line
with its process in front. It need not run: then it is what its last run wrote.

  llmserve logs                        all of it
  llmserve logs decode --follow        all decode workers, and what comes, until Ctrl-C
  llmserve logs decode-1 --tail 50     the last 50 lines of one process
  llmserve logs --since 10m            of the last ten minutes

A process that is started again writes on in its log. Logs are kept short (observability.log_file_mib); older
lines are gone. With --mode k8s it shows those of the pods, and of the run of a container before this one.
"""
_LOOK_SECONDS = 0.25
_LOOK_SECONDS_K8S = 2.0  # one request for each container
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


class Logs(Protocol):
    """Implemented by LogFiles and PodLogs."""

    @property
    def names(self) -> Sequence[str]: ...

    def written(self, count: int | None, since: float | None) -> Iterator[LogLine]: ...

    def new(self) -> list[LogLine]: ...


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", nargs="?", metavar="ROLE", help="a role (decode) or a process (decode-1)")
    add_cluster(parser)
    add_mode(parser)
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--tail", type=whole, metavar="N", help="only the last N lines of what is there")
    parser.add_argument(
        "--since", metavar="WHEN", help="only lines from then on: 90s, 10m, 2h, 1d (ago), or a date and time"
    )


def _run(options: argparse.Namespace) -> int:
    now = datetime.now()
    since = parse_since(options.since, now) if options.since else None
    manifest = asked_for_k8s(options)
    logs: Logs
    if manifest is None:
        logs, look_seconds = log_files(options, now), _LOOK_SECONDS
    else:
        from llmserve.cli import k8s  # takes half a second of CPU
        from llmserve.cli.logs.pods import PodLogs

        api = k8s.connect_to(options, manifest)
        logs, look_seconds = PodLogs(api, manifest.metadata.name, options.role), _LOOK_SECONDS_K8S
    page = _Page(logs.names)
    page.show(last(logs.written(options.tail, since), options.tail))
    if options.follow:
        _follow(logs, page, look_seconds)
    return EXIT_OK


def _follow(logs: Logs, page: "_Page", look_seconds: float) -> None:
    """Runs until Ctrl-C, which is how it is meant to end."""
    try:
        while True:
            time.sleep(look_seconds)
            try:
                page.show(logs.new())
            except Unavailable as error:
                print(f"{error.message}; trying again", file=sys.stderr)
    except KeyboardInterrupt:
        return


class _Page:
    """Prints to standard output; on a terminal each process has its colour."""

    def __init__(self, names: Sequence[str]) -> None:
        console = Console()
        self._is_coloured = console.is_terminal and not console.no_color
        self._width = max(map(len, names), default=0)
        self._colours = cycle(_COLOURS)
        self._fronts: dict[str, str] = {}
        for name in names:
            self._front(name)

    def show(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            sys.stdout.write(f"{self._front(line.process)} {line.text}\n")
        sys.stdout.flush()

    def _front(self, process: str) -> str:
        if process not in self._fronts:
            front = f"{process:<{self._width}} |"
            style = Style(color=next(self._colours))
            shown = style.render(front, color_system=ColorSystem.STANDARD) if self._is_coloured else front
            self._fronts[process] = shown
        return self._fronts[process]


COMMAND = Command("logs", "show what the processes write", _ABOUT, _configure, _run)
