"""What processes do, as the kernel counts it: to tell one that is slow from one that is stopped. Linux.

Standard library only.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Of one core. What waits for messages in vain uses less, even if it polls for them.
_WORKING_SHARE = 0.1
_STOPPED = "T"
_WANTS_TO_RUN = ("R", "D")  # waits for a core or for a disk, as when the machine swaps
_TRACKER = b"multiprocessing.resource_tracker"

# Fields of /proc/PID/stat from the state on.
_STATE, _MAJOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS = 0, 9, 11, 12


class Effort(NamedTuple):
    """Of some processes together, since they started. stopped: one of them is (SIGSTOP)."""

    cpu_seconds: float
    major_faults: int
    stopped: bool
    wants_to_run: bool

    def works_since(self, before: "Effort", seconds: float) -> bool:
        """Whether they did anything since then. Those that wait for a stopped one do not, though they may
        burn a core meanwhile."""
        if self.stopped:
            return False
        computed = self.cpu_seconds - before.cpu_seconds >= _WORKING_SHARE * seconds
        return computed or self.wants_to_run or self.major_faults > before.major_faults


def read_effort(pids: Iterable[int]) -> Effort:
    """Those that have ended count as nothing."""
    cpu_ticks, faults, states = 0, 0, set()
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            states.add(fields[_STATE])
            faults += int(fields[_MAJOR_FAULTS])
            cpu_ticks += int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
    return Effort(
        cpu_ticks / _TICKS_PER_SECOND, faults, _STOPPED in states, not states.isdisjoint(_WANTS_TO_RUN)
    )


class WorkMeter:
    """Called again and again: whether the processes worked since the call before. True when there was none
    within `fresh_seconds`."""

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
    """Processes below this one, its resource trackers left out: they remove shared memory at the very end."""
    found: set[int] = set()
    for task in _listed(Path(f"/proc/{pid}/task")):
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                if not _is_tracker(child):
                    found |= {child} | descendants(child)
    return found


def _listed(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def _is_tracker(pid: int) -> bool:
    with suppress(OSError):
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
