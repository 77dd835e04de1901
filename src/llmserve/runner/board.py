"""The state of each process of the cluster, and its copy in cluster.json."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from llmserve.config.plan import LocalPlan, ProcessSpec
from llmserve.runner.environment import RunPaths
from llmserve.runner.processes import start_ticks
from llmserve.runner.state import ClusterState


class ProcessState(StrEnum):
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
    stand: ProcessState = ProcessState.WAITING
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

    def set(self, name: str, stand: ProcessState, detail: str = "", *, pid: int | None = None) -> None:
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
        self.set(name, ProcessState.RESTARTING, detail, pid=0)


_log = logging.getLogger(__name__)


class StateWriter:
    """A state file that cannot be written (a full disk) is logged and stops nothing."""

    def __init__(self, cluster_id: str, name: str, model: str, plan: LocalPlan, paths: RunPaths) -> None:
        self._paths = paths
        self._specs = plan.processes
        self._state = ClusterState(
            cluster_id=cluster_id,
            name=name,
            manifest=str(paths.manifest),
            pid=os.getpid(),
            pid_started_ticks=start_ticks(os.getpid()),
            started_at=time.time(),
            stand=ProcessState.STARTING,
            base_urls=list(plan.base_urls),
            model=model,
            log_dir=str(paths.log_dir),
            temp_dir=str(paths.temp_dir),
        )
        self._board: Board | None = None
        self._shown: list[tuple[ProcessState, int]] = []

    @property
    def metrics(self) -> str:
        """HOST:PORT of the page of all metrics, as last told; empty: none."""
        return self._state.metrics

    def follow(self, board: Board) -> None:
        """Writes now and whenever a process changes its stand or pid."""
        self._board = board
        board.watch(self._on_change)
        self.update()

    def _on_change(self, row: Row) -> None:
        if self._board is not None and self._shown != _shown(self._board):
            self.update()

    def update(self, **fields: Any) -> None:
        """`fields` are those of ClusterState."""
        rows = self._board.rows if self._board is not None else {}
        if self._board is not None:
            self._shown = _shown(self._board)
        roles = [self._role(spec, rows[spec.name]) for spec in self._specs if spec.name in rows]
        self._state = replace(self._state, **{"roles": roles, **fields})
        try:
            self._state.write(self._paths.run_dir)
        except OSError as error:
            _log.warning("the state file cannot be written: %s", error)

    def _role(self, spec: ProcessSpec, row: Row) -> dict[str, Any]:
        return {
            "name": spec.name,
            "role": spec.role,
            "pid": row.pid,
            "stand": row.stand,
            "detail": row.detail,
            "restarts": row.restarts,
            **_addresses(spec),
            "cores": list(spec.cores),
            "gpus": list(spec.gpus),
            "log": str(self._paths.log(spec.name)),
            "shared_memory": sorted(row.shared_memory),
        }


def _shown(board: Board) -> list[tuple[ProcessState, int]]:
    return [(row.stand, row.pid) for row in board.rows.values()]


def _addresses(spec: ProcessSpec) -> dict[str, Any]:
    return {
        "listen": spec.listen,
        "http": spec.http,
        "direct": spec.direct,
        "routers": list(spec.routers),
        "kvmanagers": list(spec.kvmanagers),
        "metrics": f"127.0.0.1:{spec.metrics_port}" if spec.metrics_port else None,
    }


def addresses_to_bind(processes: Sequence[ProcessSpec]) -> list[str]:
    """Where the processes will listen, each address once. One that serves HTTP and the router's and
    kvmanager's services as well (single_process) has no `listen` of its own."""
    found: list[str | None] = []
    for spec in processes:
        addresses = _addresses(spec)
        found += [spec.http, spec.direct, spec.listen, addresses["metrics"]]
        found += [*spec.routers, *spec.kvmanagers] if spec.http and spec.kvmanagers else []
    return list(dict.fromkeys(address for address in found if address))
