"""One process: its lines, its end, and the preparation of the model as one."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.core.errors import ModelNotFound, StartFailed
from llmserve.runner.process.child import Child, ProcessCommand
from llmserve.runner.process.run import prepare_models

ANSWER = """
print('LLMSERVE_PROGRESS converting')
print('LLMSERVE_MODEL {"name": "x", "path": "/models/x"}')
print('LLMSERVE_MODEL {"name": "y", "path": "/models/y"}')
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], ProcessCommand]:
    return lambda program: ProcessCommand(
        ("-I", "-S", "-c", program), dict(os.environ), tmp_path / "logs" / "x.log"
    )


class Sessions:
    def __init__(self) -> None:
        self.open: set[int] = set()
        self.seen = 0

    def session_started(self, pid: int) -> None:
        self.open.add(pid)
        self.seen += 1

    def session_ended(self, pid: int) -> None:
        self.open.remove(pid)


async def lines_of(command: ProcessCommand) -> tuple[int, list[str]]:
    lines: list[str] = []
    child = Child(command, lines.append)
    try:
        return await child.wait(), lines
    finally:
        child.close()
        child.close()


async def test_lines_and_exit_code(command: Callable[[str], ProcessCommand]) -> None:
    made = command("import sys; print('a'); print('b\\r'); print('c', file=sys.stderr); sys.exit(5)")
    assert await lines_of(made) == (5, ["a", "b"])
    assert made.log.read_text() == "c\n"


async def test_a_last_line_without_its_end_is_a_line(command: Callable[[str], ProcessCommand]) -> None:
    assert await lines_of(command("print('a'); print('fatal', end='')")) == (0, ["a", "fatal"])


async def test_a_line_without_end_is_cut(command: Callable[[str], ProcessCommand]) -> None:
    _, lines = await lines_of(command("print('x' * 300_000)"))
    assert len(lines) > 1
    assert "".join(lines) == "x" * 300_000


async def test_its_end_is_seen_while_a_grandchild_holds_its_pipe(
    command: Callable[[str], ProcessCommand],
) -> None:
    program = "import subprocess; print(subprocess.Popen(('sleep', '300'), start_new_session=True).pid)"
    code, (grandchild,) = await asyncio.wait_for(lines_of(command(program)), 20)
    os.kill(int(grandchild), 9)
    assert code == 0


async def test_it_may_have_no_log(command: Callable[[str], ProcessCommand], tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(StartFailed, match="cannot start a process"):
        Child(command("print()"), lambda line: None)


async def test_the_prepared_model_and_no_session_is_left(command: Callable[[str], ProcessCommand]) -> None:
    """A session number that is told and never taken back would one day name somebody else's processes."""
    sessions, progress = Sessions(), list[str]()
    assert await prepare_models(command(ANSWER), sessions, progress.append) == {
        "x": "/models/x",
        "y": "/models/y",
    }
    assert progress == ["converting"]
    assert (sessions.seen, sessions.open) == (1, set())


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('no such model')", "no such model"),
        ("pass", "the preparation of the model ended: exit code 0"),
        ("import os; os._exit(3)", "the preparation of the model ended: exit code 3"),
        (
            "import os, sys; print('a warning', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)",
            "a warning\nthe preparation of the model ended: killed by signal 9",
        ),
    ],
)
async def test_a_preparation_that_fails(
    command: Callable[[str], ProcessCommand], program: str, said: str
) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await prepare_models(command(program), Sessions(), lambda text: None)
    assert caught.value.message == said


async def test_a_preparation_that_is_given_up_is_killed(command: Callable[[str], ProcessCommand]) -> None:
    waiting = asyncio.Event()
    program = "import time; print('LLMSERVE_PROGRESS begins', flush=True); time.sleep(300)"
    sessions = Sessions()
    task = asyncio.create_task(prepare_models(command(program), sessions, lambda text: waiting.set()))
    await asyncio.wait_for(waiting.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (pid,) = sessions.open
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
