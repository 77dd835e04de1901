"""What the thread that computes gets of its core: CPU time, and the time in which it could run and had to
wait. On a busy machine the first says what a step costs, and the second why it took longer.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmserve.core.process import descendants

_Times = dict[tuple[int, str], tuple[int, int]]  # nanoseconds of each thread: CPU, waiting


@dataclass(frozen=True, slots=True)
class Computing:
    """Seconds."""

    cpu: float
    waited: float


class ComputingThread:
    """That of a process and its descendants which computes most from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _times(pid)

    def so_far(self) -> Computing:
        now = _times(self._pid)
        spent = [
            (cpu - before[0], waited - before[1])
            for thread, (cpu, waited) in now.items()
            if (before := self._before.get(thread)) is not None
        ]
        cpu, waited = max(spent)
        return Computing(cpu / 1e9, waited / 1e9)


def _times(pid: int) -> _Times:
    times: _Times = {}
    for process in {pid} | descendants(pid):
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # it has just ended
                cpu, waited, _ = (task / "schedstat").read_text().split()
                times[process, task.name] = int(cpu), int(waited)
    return times
