"""One trial as a family of processes, none of which is left when it has its answer."""

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from llmserve.doctor.transports.answer import Answer, Outcome, last_step
from llmserve.runner.processes import (
    MEMBER_VARIABLE,
    Family,
    end,
    members,
    remove_unused_shared_memory,
    shared_memory,
)

NEAR = "llmserve.doctor.transports.near"
BASELINE = "llmserve.doctor.transports.baseline"
TRIAL_SECONDS = 60.0  # a trial takes 1 to 5; torch, which NIXL imports, half a minute on a very busy machine


def run_trial(module: str, *arguments: str, seconds: float = TRIAL_SECONDS) -> Answer:
    """Blocks for at most about `seconds`. Whatever happens in the processes comes back as an Answer."""
    try:
        return _run(module, arguments, seconds)
    except OSError as error:
        return Answer(Outcome.CRASHED, f"it cannot be started: {error}")


def _run(module: str, arguments: Sequence[str], seconds: float) -> Answer:
    mark = f"doctor-{uuid.uuid4().hex}"
    with tempfile.TemporaryFile("w+", errors="replace") as said, _held_open() as stdin:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, MEMBER_VARIABLE: mark},
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            step = last_step((error.output or b"").decode(errors="replace"))  # bytes, whatever was asked for
            return Answer(Outcome.HUNG, f"no answer within {seconds:g} s, while {step}")
        finally:
            _end(Family(mark, frozenset({process.pid})), process)
        return Answer.heard(output) or Answer(Outcome.CRASHED, _last_words(process.returncode, said))


@contextmanager
def _held_open() -> Iterator[int]:
    """A stdin that ends when this process does, which tells the trial to end."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


def _end(family: Family, process: subprocess.Popen[str]) -> None:
    segments = shared_memory(members(family))
    end(lambda: members(family), 0)
    process.wait()
    remove_unused_shared_memory(segments)
    if process.stdout is not None:
        process.stdout.close()


def _last_words(code: int, said: IO[str]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    return f"{how}: {lines[-1]}" if lines else how
