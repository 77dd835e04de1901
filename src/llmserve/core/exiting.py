"""The end of a process that has closed what it had, without the teardown of the interpreter.

With torch, vLLM and the transports loaded that teardown takes seconds of CPU time, in each of the processes
of an engine and one after the other, and gives back only what the kernel takes back anyway.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import sys
from typing import NoReturn


def exit_process(exit_code: int) -> NoReturn:
    """Ends this process. What is registered with atexit runs; destructors do not."""
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
            stream.flush()
    os._exit(exit_code)


def exit_so_when_done() -> None:
    """For a process of multiprocessing, in its clean-up: it ends so when Python would begin the teardown,
    with 1 if an error is on its way. Any other process is left as it is."""
    if multiprocessing.parent_process() is None:
        return
    error = sys.exc_info()[0]
    exit_code = 0 if error is None or issubclass(error, SystemExit) else 1

    def leave() -> None:
        atexit.unregister(leave)
        exit_process(exit_code)

    atexit.register(leave)
