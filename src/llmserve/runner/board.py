"""The state of each process of the cluster: in memory for those who watch it, and as cluster.json."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from llmserve.config.plan import LocalPlan, ProcessSpec
from llmserve.runner.environment import RunPaths
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import ClusterState

_log = logging.getLogger(__name__)


class ProcessState(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DRAINED = "drained"  # the worker left on an operator's order, and stays away until the order is undone
    RESTARTING = "restarting"  # the process has ended and is about to be started again
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class ProcessRow:
    """since: time at which the state began, on the board's clock. restarts: starts after the first. hangs:
    times that it was killed because it did not answer. shared_memory: files of /dev/shm that its processes
    were seen to use."""

    name: str
    state: ProcessState = ProcessState.WAITING
    detail: str = ""
    since: float = 0.0
    pid: int = 0
    restarts: int = 0
    hangs: int = 0
    shared_memory: frozenset[str] = frozenset()


class Board:
    """A row for each process. `set` and `restarting` call the watchers; they see what `hung` and
    `saw_shared_memory` note at the next change of the state."""

    def __init__(self, names: list[str], clock: Callable[[], float]) -> None:
        self._clock = clock
        self.rows = {name: ProcessRow(name, since=clock()) for name in names}
        self._watchers: list[Callable[[ProcessRow], None]] = []

    def watch(self, watcher: Callable[[ProcessRow], None]) -> None:
        self._watchers.append(watcher)

    def add(self, name: str) -> None:
        """A process of another name begins."""
        self.rows[name] = ProcessRow(name, since=self._clock())

    def remove(self, name: str) -> None:
        """The process has ended for good."""
        del self.rows[name]

    def set(self, name: str, state: ProcessState, detail: str = "", *, pid: int | None = None) -> None:
        row = self.rows[name]
        pid = row.pid if pid is None else pid
        if (row.state, row.detail, row.pid) == (state, detail, pid):
            return
        if row.state is not state:
            row.state, row.since = state, self._clock()
        row.detail, row.pid = detail, pid
        for watcher in self._watchers:
            watcher(row)

    def restarting(self, name: str, detail: str) -> None:
        self.rows[name].restarts += 1
        self.set(name, ProcessState.RESTARTING, detail, pid=0)

    def hung(self, name: str) -> None:
        self.rows[name].hangs += 1

    def saw_shared_memory(self, name: str, paths: frozenset[str]) -> None:
        self.rows[name].shared_memory = paths


class StateWriter:
    """Writes cluster.json when a process changes its state or pid, and on `update`. A file that cannot be
    written (a full disk) is logged and stops nothing."""

    def __init__(
        self, board: Board, plan: LocalPlan, paths: RunPaths, *, cluster_id: str, name: str, model: str
    ) -> None:
        self._board, self._specs, self._paths = board, plan.processes, paths
        self._written: list[tuple[ProcessState, int]] = []
        self._state = ClusterState(
            cluster_id=cluster_id,
            name=name,
            model=model,
            manifest=str(paths.manifest),
            pid=os.getpid(),
            pid_started_ticks=start_ticks(os.getpid()),
            started_at=time.time(),
            stand=ProcessState.STARTING,
            base_urls=list(plan.base_urls),
            log_dir=str(paths.log_dir),
            temp_dir=str(paths.temp_dir),
        )

    def start(self) -> None:
        self._board.watch(self._on_change)
        self.update()

    def show(self, processes: tuple[ProcessSpec, ...]) -> None:
        """From now on the cluster has these processes. The board has a row for each."""
        self._specs = processes
        self.update()

    def _on_change(self, row: ProcessRow) -> None:
        if self._written != self._shown():
            self.update()

    def update(self, **fields: Any) -> None:
        """fields: of ClusterState."""
        self._written = self._shown()
        roles = [self._role(spec, self._board.rows[spec.name]) for spec in self._specs]
        self._state = replace(self._state, **{"roles": roles, **fields})
        try:
            self._state.write(self._paths.run_dir)
        except OSError as error:
            _log.warning("the state file cannot be written: %s", error)

    def _shown(self) -> list[tuple[ProcessState, int]]:
        return [(row.state, row.pid) for row in self._board.rows.values()]

    def _role(self, spec: ProcessSpec, row: ProcessRow) -> dict[str, Any]:
        return {
            "name": spec.name,
            "role": spec.role,
            "pid": row.pid,
            "stand": row.state,
            "detail": row.detail,
            "restarts": row.restarts,
            "listen": spec.listen,
            "http": spec.http,
            "direct": spec.direct,
            "https": spec.https,
            "routers": list(spec.routers),
            "kvmanagers": list(spec.kvmanagers),
            "metrics": _metrics_address(spec),
            "cores": list(spec.cores),
            "gpus": list(spec.gpus),
            "model": spec.model,
            "log": str(self._paths.log(spec.name)),
            "shared_memory": sorted(row.shared_memory),
        }


def _metrics_address(spec: ProcessSpec) -> str | None:
    return f"127.0.0.1:{spec.metrics_port}" if spec.metrics_port else None


def addresses_to_bind(processes: Sequence[ProcessSpec]) -> list[str]:
    """Returns each address on which the processes will listen, once. A process that serves HTTP and the
    router's and kvmanager's services as well (single_process) has no `listen` of its own."""
    found: list[str | None] = []
    for spec in processes:
        found += [spec.http, spec.direct, spec.listen, _metrics_address(spec)]
        found += [*spec.routers, *spec.kvmanagers] if spec.http and spec.kvmanagers else []
    return list(dict.fromkeys(address for address in found if address))
