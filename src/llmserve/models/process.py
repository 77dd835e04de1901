"""The conversion as a process of its own: torch stays out of ours, and its memory is given back.

It holds nothing of ours: should we be killed, its stdin ends, and it with it (`end_with_stdin`).
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from llmserve.core.errors import LLMServeError
from llmserve.models.prepared import Progress

PROGRESS_WORD = "LLMSERVE_PROGRESS"
END_WITH_STDIN = "--end-with-stdin"
_TIMEOUT_SECONDS = 3600.0
_LAST_LINES = 5


def convert_in_process(source: Path, out: Path, progress: Progress) -> None:
    """Errors: LLMServeError with the last lines that the process wrote."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "llmserve.models",
        "convert",
        END_WITH_STDIN,
        str(source),
        str(out),
    ]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
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
            raise LLMServeError(f"cannot convert {source.name} ({_how(code)}): {_tail(errors)}")


def end_with_stdin() -> None:
    """In the process: ends it when whoever started it is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end-with-stdin", daemon=True).start()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}; is there enough memory?"


def _relay(lines: IO[str], progress: Progress) -> None:
    for line in lines:
        word, _, text = line.strip().partition(" ")
        if word == PROGRESS_WORD:
            progress(text)


def _tail(errors: IO[str]) -> str:
    errors.seek(0)
    return "\n".join(errors.read().strip().splitlines()[-_LAST_LINES:])
