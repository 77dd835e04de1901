"""Where each process of the cluster stands: written by its keeper, shown by the console, kept in the state
file. Whoever watches is told of each change."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Stand(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DRAINED = "drained"  # it left on an operator's order, and stays away until it is wanted again
    RESTARTING = "restarting"  # it ended; the next try is to come
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class Row:
    """since: when this stand began, on the clock of the board. restarts: after the first start. hangs: how
    often it was killed because it did not answer. shared_memory: files of /dev/shm that its processes were
    seen to use."""

    name: str
    stand: Stand = Stand.WAITING
    detail: str = ""
    since: float = 0.0
    pid: int = 0
    restarts: int = 0
    hangs: int = 0
    shared_memory: frozenset[str] = frozenset()


Watcher = Callable[[Row], None]


class Board:
    def __init__(self, names: list[str], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.rows = {name: Row(name, since=clock()) for name in names}
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    def set(self, name: str, stand: Stand, detail: str = "", *, pid: int | None = None) -> None:
        row = self.rows[name]
        if (row.stand, row.detail, pid) in ((stand, detail, None), (stand, detail, row.pid)):
            return
        if row.stand is not stand:
            row.stand, row.since = stand, self.clock()
        row.detail = detail
        row.pid = row.pid if pid is None else pid
        for watcher in self._watchers:
            watcher(row)

    def saw_shared_memory(self, name: str, paths: frozenset[str]) -> None:
        """Watchers read it at the next change."""
        self.rows[name].shared_memory = paths

    def hung(self, name: str) -> None:
        """Watchers read it at the next change."""
        self.rows[name].hangs += 1

    def restarting(self, name: str, detail: str) -> None:
        self.rows[name].restarts += 1
        self.set(name, Stand.RESTARTING, detail, pid=0)
