"""Where commands print, and pages that `--watch` prints again and again."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmserve.core.errors import LLMServeError

_WIDTH_OF_A_FILE = 140


def screen() -> Console:
    """Returns the terminal, or standard output as a file, which has no width of its own."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    return console


def table(*titles: str) -> Table:
    """Returns a table without lines whose cells wrap."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        made.add_column(title, overflow="fold")
    return made


@dataclass(frozen=True, slots=True)
class Frame:
    """One look. page: makes the page for a screen of so many columns. fields: the same, for programs."""

    page: Callable[[int], RenderableType]
    fields: Mapping[str, object]


Look = Callable[[], Frame]


def watch(look: Look, every_seconds: float, *, as_json: bool) -> None:
    """Shows one look after the other until Ctrl-C: a page that redraws itself; page after page where there is
    no terminal; as_json: a line of JSON for each. What is away is shown, and looked for again. Errors: those
    of the first look."""
    frames = _frames(look, every_seconds)
    console = screen()
    try:
        if as_json:
            for frame in frames:
                print(json.dumps(frame.fields), flush=True)
        elif console.is_terminal:
            _redraw(frames, console)
        else:
            for frame in frames:
                console.print(_dated(frame, console.width), "")
                console.file.flush()
    except KeyboardInterrupt:  # how it is meant to end
        return


def _frames(look: Look, every_seconds: float) -> Iterator[Frame]:
    yield look()
    while True:
        time.sleep(every_seconds)
        try:
            frame = look()
        except LLMServeError as error:
            frame = _away(error.message)
        yield frame


def _redraw(frames: Iterator[Frame], console: Console) -> None:
    """Cuts a page that is higher than the terminal."""
    with Live(console=console, auto_refresh=False) as live:
        for frame in frames:
            live.update(_dated(frame, console.width), refresh=True)


def _dated(frame: Frame, width: int) -> RenderableType:
    return Group(Text(f"{time.strftime('%H:%M:%S')}   Ctrl-C ends", "dim"), frame.page(width))


def _away(why: str) -> Frame:
    text = Text(f"{why}. Looking again.", "red")
    return Frame(lambda _: text, {"healthy": False, "problems": [why]})
