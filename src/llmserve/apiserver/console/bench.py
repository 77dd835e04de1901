"""Small loads that an admin runs from the console: `llmserve bench` as a process of its own, which leaves the
loop of this one alone and gives way to all others. A run is a file, which every apiserver of the host reads.
"""

import asyncio
import fcntl
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from llmserve.core.errors import Forbidden, NotFound, Overloaded
from llmserve.core.process import START_FIELD, process_fields

_FOLDER = "bench"  # loadgen/run_file.py
_LOCK = "lock"
_KEY_VARIABLE = "LLMSERVE_API_KEY"  # cli/bench
_RUNNING = ("starting", "running")
_REQUEST_SECONDS = 60.0
_TRIES, _TRY_SECONDS = 100, 0.1
_LEAST_PRIORITY = 19


class BenchBody(BaseModel):
    """A load of users who each wait for an answer before they ask again. prompt_tokens, output_tokens: sizes
    of each request. seconds: nobody asks any more after this time. model: empty: the first one. api_key: the
    key with which requests are sent; needed where the cluster asks for keys."""

    model_config = ConfigDict(extra="forbid")

    users: Annotated[int, Field(ge=1, le=32)] = 4
    requests: Annotated[int, Field(ge=1, le=500)] = 40
    prompt_tokens: Annotated[int, Field(ge=1, le=8192)] = 200
    output_tokens: Annotated[int, Field(ge=1, le=1024)] = 60
    seconds: Annotated[float, Field(gt=0, le=120)] = 30.0
    model: Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")] = ""
    api_key: Annotated[str | None, Field(max_length=16_384, pattern=r"^[!-~]*$", repr=False)] = None

    @model_validator(mode="wrap")
    @classmethod
    def _show_no_value(cls, fields: Any, validate: ModelWrapValidatorHandler["BenchBody"]) -> "BenchBody":
        """Errors: one that names fields without what they hold: an answer is kept in the request's record."""
        try:
            return validate(fields)
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False)
            said = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
            raise ValueError("; ".join(said)) from None

    def arguments(self) -> list[str]:
        """Returns the options of `llmserve bench`."""
        named = {
            "--mix": f"console={self.prompt_tokens}/{self.output_tokens}",
            "--concurrency": self.users,
            "--requests": self.requests,
            "--seconds": self.seconds,
            "--timeout": _REQUEST_SECONDS,
            "--warmup": 1,
            "--model": self.model,
        }
        return [f"{name}={value}" for name, value in named.items() if value != ""]


@dataclass(frozen=True, slots=True)
class _ListedRun:
    """A file as it was when it was read last. version: its time of change and its size. run: without its
    points; None: the file is no run."""

    version: tuple[int, int]
    run: dict[str, Any] | None


class BenchRuns:
    """run_dir: of the cluster; None: there is none, and the runs are this apiserver's own. url: returns the
    address that loads are sent to. certificate: the file with that of HTTPS; None: it is http. Life: aclose
    (idempotent), which ends a run of this apiserver."""

    def __init__(self, run_dir: str | None, url: Callable[[], str], certificate: Path | None = None) -> None:
        self._run_dir, self._url, self._certificate = run_dir, url, certificate
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._listed: dict[Path, _ListedRun] = {}

    def list(self) -> dict[str, Any]:
        """Returns the runs without their points, the latest first. running: id of the one that goes on, which
        `llmserve bench` may have begun; None: there is none. Every open page asks once a second, so only
        files that have changed are read."""
        found = {path: self._look(path) for path in self._paths()}
        self._listed = {path: one for path, one in found.items() if one is not None}
        runs = [_as_it_is(one.run) for one in self._listed.values() if one.run is not None]
        running = next((run["id"] for run in runs if run["state"] in _RUNNING), None)
        return {"running": running, "runs": runs}

    def read(self, run_id: str) -> dict[str, Any]:
        """Returns a run with its points. Errors: NotFound."""
        path = next((path for path in self._paths() if path.stem == run_id), None)
        run = _read(path) if path is not None else None
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        return _as_it_is(run)

    async def start(self, body: BenchBody) -> dict[str, Any]:
        """Errors: Overloaded while another one runs that a console began."""
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await self._take(lock)
            run_id = str(time.time_ns() // 1_000_000)
            await self._spawn(body, folder / f"{run_id}.json", lock)
        finally:
            os.close(lock)
        return {"id": run_id}

    def stop(self) -> dict[str, Any]:
        """Ends the run that goes on; what has ended by then is reported. Errors: NotFound; Forbidden for a
        run that another user of the machine began."""
        run_id = self.list()["running"]
        if run_id is None:
            raise NotFound("no load runs")
        try:
            os.kill(self.read(run_id)["process"][0], signal.SIGINT)
        except PermissionError:
            raise Forbidden("another user of the machine began this load") from None
        except ProcessLookupError:
            pass  # it has just ended
        return {"id": run_id}

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    async def _take(self, lock: int) -> None:
        """Waits for a process that has reported and is about to end. Errors: Overloaded."""
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if (await asyncio.to_thread(self.list))["running"]:
                break
            await asyncio.sleep(_TRY_SECONDS)
        raise Overloaded("a load runs already: one at a time")

    async def _spawn(self, body: BenchBody, file: Path, lock: int) -> None:
        """The process holds the lock for as long as it lives."""
        environment = {name: value for name, value in os.environ.items() if name != _KEY_VARIABLE}
        key = {_KEY_VARIABLE: body.api_key} if body.api_key else {}
        trust = ("--certificate", str(self._certificate)) if self._certificate else ()
        command = (sys.executable, "-m", "llmserve.cli", "bench", "--url", self._url(), *trust)
        self._process = await asyncio.create_subprocess_exec(
            *command,
            *("--run-file", str(file)),
            *body.arguments(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env={**environment, **key},
            pass_fds=(lock,),
        )
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _LEAST_PRIORITY)

    def _folder(self) -> Path:
        if self._run_dir is not None:
            return Path(self._run_dir) / _FOLDER
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="llmserve-bench-")
        return Path(self._own.name)

    def _paths(self) -> Sequence[Path]:
        """Returns the files of all runs, the latest first."""
        return sorted(self._folder().glob("*.json"), reverse=True)

    def _look(self, path: Path) -> _ListedRun | None:
        """Returns None for a file that is gone."""
        try:
            about = path.stat()
        except OSError:
            return None
        version = about.st_mtime_ns, about.st_size
        known = self._listed.get(path)
        if known is not None and known.version == version:
            return known
        run = _read(path)
        return _ListedRun(version, run and {**run, "points": []})


def _read(path: Path) -> dict[str, Any] | None:
    """Returns None for a file that is no run, or is gone."""
    try:
        run = {"id": path.stem, **json.loads(path.read_text())}
        pid, started = run["process"]
        is_run = isinstance(pid, int) and isinstance(started, str) and isinstance(run["state"], str)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return run if is_run else None


def _as_it_is(run: dict[str, Any]) -> dict[str, Any]:
    """Returns a run as failed when its file says that it goes on, and its process is gone."""
    if run["state"] in _RUNNING and not _lives(*run["process"]):
        return run | {"state": "failed", "error": "it ended without a report"}
    return run


def _lives(pid: int, started: str) -> bool:
    with suppress(OSError):
        return process_fields(pid)[START_FIELD] == started
    return False
