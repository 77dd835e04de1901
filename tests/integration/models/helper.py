"""A process that a test starts, lets go on from step to step, and kills."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Helper:
    """It runs a script of this folder, and says its steps line by line."""

    def __init__(self, script: Path, *arguments: object) -> None:
        command = (sys.executable, str(script), *map(str, arguments))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said: list[str] = []

    def until(self, start: str) -> str:
        """Waits for a line that starts so; gives the rest of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith(start):
                return self.said[-1].removeprefix(start)
        pytest.fail(f"it ended without '{start}': {self.said}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


StartHelper = Callable[..., Helper]


@contextmanager
def helpers(script: str, *first: object) -> Iterator[StartHelper]:
    """Gives what starts processes of a script, whose arguments begin with `first`, and ends them all."""
    started: list[Helper] = []

    def begin(*arguments: object) -> Helper:
        started.append(Helper(Path(__file__).with_name(script), *first, *arguments))
        return started[-1]

    try:
        yield begin
    finally:
        for one in started:
            one.kill()
