"""The conversion as a process of its own: torch stays out of ours, and its memory is given back."""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from llmserve.core.errors import LLMServeError
from llmserve.models.prepared import Progress

PROGRESS_WORD = "LLMSERVE_PROGRESS"
_TIMEOUT_SECONDS = 3600.0
_LAST_LINES = 5


def convert_in_process(source: Path, out: Path, progress: Progress) -> None:
    """Errors: LLMServeError with the last lines that the process wrote."""
    command = [sys.executable, "-m", "llmserve.models", "convert", str(source), str(out)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        deadline = threading.Timer(_TIMEOUT_SECONDS, process.kill)
        deadline.start()
        try:
            assert process.stdout is not None, "stdout is a pipe"
            _relay(process.stdout, progress)
            code = process.wait()
        finally:
            deadline.cancel()
            process.kill()
            process.communicate()
        if code != 0:
            raise LLMServeError(f"cannot convert {source.name} (exit code {code}): {_tail(errors)}")


def _relay(lines: IO[str], progress: Progress) -> None:
    for line in lines:
        word, _, text = line.strip().partition(" ")
        if word == PROGRESS_WORD:
            progress(text)


def _tail(errors: IO[str]) -> str:
    errors.seek(0)
    return "\n".join(errors.read().strip().splitlines()[-_LAST_LINES:])
