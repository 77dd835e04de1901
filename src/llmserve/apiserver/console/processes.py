"""What this process knows of the others: what the supervisor wrote, or the workers that there are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmserve.rpc.codec import decode_role
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_FILE = "cluster.json"  # runner/state.py


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """As overview.snapshot.KnownProcesses. temp_dir: the supervisor's; empty: there is none."""

    name: str
    stand: str = "ready"
    model: str = ""
    base_urls: Sequence[str] = ()
    pid: int = 0
    started_at: float = 0.0
    roles: Sequence[Mapping[str, Any]] = field(default=())
    temp_dir: str = ""

    @classmethod
    def of_workers(
        cls, name: str, apiserver: str, status: router_pb2.GetClusterStatusResponse
    ) -> "ProcessTable":
        """Where no supervisor runs, as in pods: this apiserver, the router that leads, and its workers."""
        workers = [
            _role(one.info.worker_id, decode_role(one.info.role).value, one.info.address, one.info.model)
            for one in status.workers
        ]
        router = [_role("router", "router", status.leader)] if status.leads else []
        return cls(name, roles=(_role(apiserver, "apiserver", ""), *router, *workers))


def _role(name: str, role: str, listen: str, model: str = "") -> Mapping[str, Any]:
    fixed = {"stand": "ready", "detail": "", "pid": 0, "restarts": 0, "http": None, "log": ""}
    return {"name": name, "role": role, "listen": listen, "model": model, **fixed}


class ClusterFile:
    """The file in which the supervisor says what it runs. It is read again when it has changed."""

    def __init__(self, run_dir: str | None) -> None:
        """run_dir: None: there is no supervisor."""
        self._path = Path(run_dir) / _FILE if run_dir else None
        self._version = 0
        self._table: ProcessTable | None = None

    def read(self) -> ProcessTable | None:
        """Returns None when there is no file. Blocks for the read of a small file."""
        if self._path is None:
            return None
        try:
            version = self._path.stat().st_mtime_ns
            if version != self._version:
                self._table, self._version = _table(json.loads(self._path.read_text())), version
        except (OSError, ValueError, TypeError, KeyError):
            self._table, self._version = None, 0
        return self._table


def _table(data: Mapping[str, Any]) -> ProcessTable:
    names = ("name", "stand", "model", "base_urls", "pid", "started_at", "roles", "temp_dir")
    return ProcessTable(**{name: data[name] for name in names})
