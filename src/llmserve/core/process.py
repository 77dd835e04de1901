"""A process: its large imports, the work that the kernel counts for it, and its end. Linux."""

import atexit
import contextlib
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Of one core. What waits for messages in vain uses less, even if it polls for them.
_WORKING_SHARE = 0.1
_STOPPED = "T"
_WANTS_TO_RUN = ("R", "D")  # waits for a core or for a disk, as when the machine swaps
_YOUNG_OBJECTS = 10_000  # of one look of the garbage collector
_TRACKER = b"multiprocessing.resource_tracker"

# Places in process_fields.
START_FIELD = 19
_STATE, _MAJOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS = 0, 9, 11, 12


class Effort(NamedTuple):
    """Work of some processes together since they started. stopped: one of them is stopped (SIGSTOP).
    wants_to_run: one of them waits for a core or for a disk."""

    cpu_seconds: float
    major_faults: int
    stopped: bool
    wants_to_run: bool

    def works_since(self, before: "Effort", seconds: float) -> bool:
        """Returns whether the processes did anything since then. Those that wait for a stopped one do not,
        though they may burn a core meanwhile."""
        if self.stopped:
            return False
        computed = self.cpu_seconds - before.cpu_seconds >= _WORKING_SHARE * seconds
        return computed or self.wants_to_run or self.major_faults > before.major_faults


def read_effort(pids: Iterable[int]) -> Effort:
    """Adds up the work of the processes. One that has ended counts as nothing."""
    cpu_ticks, faults, states = 0, 0, set()
    for pid in pids:
        with suppress(OSError):
            fields = process_fields(pid)
            states.add(fields[_STATE])
            faults += int(fields[_MAJOR_FAULTS])
            cpu_ticks += int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
    return Effort(
        cpu_ticks / _TICKS_PER_SECOND, faults, _STOPPED in states, not states.isdisjoint(_WANTS_TO_RUN)
    )


class WorkMeter:
    """Call it again and again: it returns whether the processes worked since the call before. It returns
    True when that call is longer ago than `fresh_seconds`, or there was none."""

    def __init__(self, pids: Callable[[], Iterable[int]], fresh_seconds: float = 5.0) -> None:
        self._pids, self._fresh_seconds = pids, fresh_seconds
        self._last: tuple[float, Effort] | None = None

    def __call__(self) -> bool:
        now, effort = time.monotonic(), read_effort(self._pids())
        last, self._last = self._last, (now, effort)
        if last is None or now - last[0] > self._fresh_seconds:
            return True
        return effort.works_since(last[1], now - last[0])


def descendants(pid: int) -> set[int]:
    """Returns the processes below this one without the resource trackers."""
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    if not is_resource_tracker(child):
                        found |= {child} | descendants(child)
    return found


def is_resource_tracker(pid: int) -> bool:
    """The trackers of multiprocessing remove the shared memory of those they outlive: they are ended last."""
    with suppress(OSError):
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def process_fields(pid: int | str) -> list[str]:
    """Returns the fields of /proc/PID/stat from the state on. The field before is the program's name in
    parentheses, which may hold anything. Errors: OSError."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


@contextmanager
def importing() -> Iterator[None]:
    """Stops the garbage collector around the import of something as large as torch or vLLM, whose modules
    make a million objects that stay. Looking at them again and again costs a fifth of the CPU of the
    import, and later a pause of the event loop with each full collection. So the collector never looks at
    what there is at the end."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def settle_collector() -> None:
    """Called when a process is ready. What it consists of stays, so the garbage collector looks at it no
    more. New objects are looked at when there are many: nearly all of those that a request makes are gone
    before, without a cycle, and to look at them every 700 objects costs a twentieth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def exit_process(exit_code: int) -> NoReturn:
    """Ends this process without the teardown of the interpreter: with torch, vLLM and the transports
    loaded it takes seconds of CPU time in each process, and gives back only what the kernel takes back
    anyway. Functions registered with atexit run; destructors do not."""
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
            stream.flush()
    os._exit(exit_code)


def exit_so_when_done() -> None:
    """Makes a process of multiprocessing end by `exit_process` when Python would begin the teardown, with
    1 if an error is on its way. Call it in the clean-up. It changes nothing in other processes."""
    if multiprocessing.parent_process() is None:
        return
    error = sys.exc_info()[0]
    exit_code = 0 if error is None or issubclass(error, SystemExit) else 1

    def leave() -> None:
        atexit.unregister(leave)
        exit_process(exit_code)

    atexit.register(leave)
