"""Python imports this at the start of each process that has this folder on PYTHONPATH (bench/code/hops.py).

It counts the calls of LLMServe's functions, and notes for each the chains of LLMServe's files on the stack.
Whenever the file $LLMSERVE_COUNT_CALLS/ask changes, it writes all of that to a file of its own
beside that one, as JSON, and forgets the chains.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_PACKAGE = f"{os.sep}llmserve{os.sep}"
# What starts the event loop: what is below it on the stack is the process's start, not the request's way.
_LOOPS = (f"{os.sep}asyncio{os.sep}runners.py", f"{os.sep}uvloop{os.sep}")
_ASK_SECONDS = 0.05


class _CallCounter:
    def __init__(self) -> None:
        self._calls: Counter[CodeType] = Counter()
        self._chains: dict[CodeType, set[tuple[str, ...]]] = {}

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and _PACKAGE in code.co_filename:
            self._calls[code] += 1
            self._chains.setdefault(code, set()).add(_chain(frame))

    def report(self) -> str:
        chains, self._chains = self._chains, {}
        found = [
            (code.co_filename, code.co_qualname, count, list(chains.get(code, ())))
            for code, count in list(self._calls.items())
        ]
        return json.dumps(found)


def _chain(frame: FrameType | None) -> tuple[str, ...]:
    """The files of LLMServe from the event loop to this frame, each once."""
    files: dict[str, None] = {}
    while frame is not None and not any(loop in frame.f_code.co_filename for loop in _LOOPS):
        if _PACKAGE in frame.f_code.co_filename:
            files[frame.f_code.co_filename] = None
        frame = frame.f_back
    return tuple(reversed(files))


def _report(counter: _CallCounter, folder: Path) -> None:
    asked, done = folder / "ask", ""
    while True:
        time.sleep(_ASK_SECONDS)
        try:
            number = asked.read_text()
        except OSError:  # it is not there before the first question, nor after the measurement
            continue
        if number != done:
            done = number
            partial = folder / f"{os.getpid()}.partial"
            partial.write_text(counter.report())
            partial.rename(folder / f"{os.getpid()}-{number}.json")


if "LLMSERVE_COUNT_CALLS" in os.environ:
    counter = _CallCounter()
    # Before the profiler is set for threads: what reports is not counted.
    threading.Thread(
        target=_report, args=(counter, Path(os.environ["LLMSERVE_COUNT_CALLS"])), daemon=True
    ).start()
    threading.setprofile(counter.profile)
    sys.setprofile(counter.profile)
