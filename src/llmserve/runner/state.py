"""The files of a run: `cluster.json` describes it, `lock` says that it runs.

The supervisor holds the lock for as long as it lives, and the kernel drops it with it: a state file
without a held lock is a leftover.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.runner.process.family import is_alive

STATE_NAME = "cluster.json"
LOCK_NAME = "lock"


def run_dir_of(manifest: Manifest, manifest_path: Path) -> Path:
    """Returns deployment.local.run_dir; a relative path is beside the manifest."""
    configured = manifest.deployment.local.run_dir
    chosen = Path(configured).expanduser() if configured else Path(".llmserve") / manifest.metadata.name
    return Path(os.path.normpath(manifest_path.absolute().parent / chosen))


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What other shells (`status`, `down`) and tools know of a running cluster. roles: an entry for each
    process: name, role, pid, stand (its state), detail, restarts, addresses (listen, http, direct,
    metrics), cores, gpus, model (of a
    worker), log, shared_memory (files of /dev/shm that were seen)."""

    cluster_id: str
    name: str
    manifest: str
    pid: int
    pid_started_ticks: int
    started_at: float  # Unix time
    stand: str  # starting, ready, stopping
    base_urls: list[str] = field(default_factory=list)
    metrics: str = ""  # HOST:PORT of the page of all processes
    model: str = ""  # the first one of several
    model_dir: str = ""
    log_dir: str = ""
    temp_dir: str = ""
    roles: list[dict[str, Any]] = field(default_factory=list)

    def write(self, run_dir: Path) -> None:
        """Writes the whole file or nothing. The caller holds the run directory's lock. Errors: OSError."""
        fresh = run_dir / f".{STATE_NAME}.new"
        try:
            fresh.write_text(json.dumps(asdict(self), indent=1))
            os.replace(fresh, run_dir / STATE_NAME)
        except OSError:
            with suppress(OSError):
                fresh.unlink()
            raise

    @property
    def is_running(self) -> bool:
        return is_alive(self.pid, self.pid_started_ticks)


def read_state(run_dir: Path) -> ClusterState | None:
    """Returns None when there is no file. Errors: LLMServeError for a file that is not one of ours."""
    path = run_dir / STATE_NAME
    try:
        data: Mapping[str, Any] = json.loads(path.read_text())
        return ClusterState(**data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise LLMServeError(f"{path}: cannot be read: {error}") from error


class RunLock:
    """A context in which one supervisor owns the run directory. Errors on entry: StartFailed."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._fd: int | None = None

    def __enter__(self) -> "RunLock":
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise StartFailed(self._who_runs()) from None
        except OSError as error:
            self._close()
            raise StartFailed(
                f"{self._run_dir}: cannot be used as run directory: {error.strerror}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _who_runs(self) -> str:
        state = None
        with suppress(LLMServeError):
            state = read_state(self._run_dir)
        who = f" (cluster '{state.name}', pid {state.pid})" if state else ""
        return (
            f"a cluster already runs in {self._run_dir}{who}: stop it with `llmserve down`, "
            "or give this one its own deployment.local.run_dir"
        )


_DRAINED_FOLDER = "drained"
_POLL_SECONDS = 0.25


class DrainedMark:
    """A file in the run's temporary directory that says that one worker left on an operator's order. The
    supervisor writes it when the worker has ended and starts the worker again once the file is gone, which
    is how other shells (`llmserve drain --undo`) ask for it."""

    def __init__(self, temp_dir: Path, name: str) -> None:
        self._path = temp_dir / _DRAINED_FOLDER / name

    def set(self) -> None:
        """Errors: OSError."""
        self._path.parent.mkdir(exist_ok=True)
        self._path.touch()

    def clear(self) -> bool:
        """Returns whether the mark was there."""
        with suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False

    async def until_cleared(self) -> None:
        while self._path.exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(_POLL_SECONDS)
