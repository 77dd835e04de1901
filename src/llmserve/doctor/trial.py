"""One trial of a transport, or of the baseline: a family of processes with a deadline, and what it reports.

C libraries that crash or hang are findings, so each trial runs in processes of its own. None of them is left
when it has its report.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import IO, Any

from llmserve.runner.process.family import MEMBER_VARIABLE, Family, end

# Lines of stdout that begin with other words are the libraries' own.
REPORT_WORD = "LLMSERVE_TRIAL"
STEP_WORD = "LLMSERVE_STEP"


class TrialOutcome(StrEnum):
    """MEASURED: the right bytes arrived. UNAVAILABLE: the transport cannot be used here, and says why.
    FAILED: a transfer failed or brought wrong bytes. CRASHED: the process ended. HUNG: it missed its
    deadline."""

    MEASURED = "measured"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    CRASHED = "crashed"
    HUNG = "hung"


def say_step(text: str) -> None:
    """Prints what the process does from now on: where it hung, if it does."""
    print(STEP_WORD, text, flush=True)


def last_step(output: str) -> str:
    steps = [line.partition(" ")[2] for line in output.splitlines() if line.startswith(STEP_WORD)]
    return steps[-1] if steps else "starting"


@dataclass(frozen=True, slots=True)
class TrialReport:
    """rates: bytes per second by what was measured, with MEASURED. reason: with the other outcomes."""

    outcome: TrialOutcome
    reason: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)

    def say(self) -> None:
        print(REPORT_WORD, json.dumps(asdict(self)), flush=True)

    @classmethod
    def heard(cls, output: str) -> "TrialReport | None":
        """Returns None when the process printed no report."""
        for line in output.splitlines():
            word, _, text = line.partition(" ")
            if word == REPORT_WORD:
                fields: dict[str, Any] = json.loads(text)
                return cls(TrialOutcome(fields["outcome"]), fields["reason"], fields["rates"])
        return None


NEAR = ("llmserve.doctor.measure", "near")
BASELINE = ("llmserve.doctor.measure", "plain")
TRIAL_SECONDS = 60.0  # a trial takes 1 to 5; torch, which NIXL imports, half a minute on a very busy machine


def run_trial(module: str, *arguments: str, seconds: float = TRIAL_SECONDS) -> TrialReport:
    """Blocks for at most about `seconds`. Whatever happens in the processes comes back as a TrialReport."""
    try:
        return _run(module, arguments, seconds)
    except OSError as error:
        return TrialReport(TrialOutcome.CRASHED, f"it cannot be started: {error}")


def _run(module: str, arguments: Sequence[str], seconds: float) -> TrialReport:
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
            return TrialReport(TrialOutcome.HUNG, f"no answer within {seconds:g} s, while {step}")
        finally:
            end(Family(mark, frozenset({process.pid})), 0)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        return TrialReport.heard(output) or TrialReport(
            TrialOutcome.CRASHED, _last_words(process.returncode, said)
        )


@contextmanager
def _held_open() -> Iterator[int]:
    """Yields a stdin that ends when this process does, which makes the trial end."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


def _last_words(code: int, said: IO[str]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    return f"{how}: {lines[-1]}" if lines else how
