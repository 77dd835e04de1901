"""A run as a file of JSON, while it goes on and afterwards: the console shows it (docs/console.md)."""

import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from llmserve.core.errors import LLMServeError
from llmserve.core.process import START_FIELD, process_fields
from llmserve.core.tasks import running_beside
from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.drive import Drive
from llmserve.loadgen.report import LoadReport

FOLDER = "bench"  # in the run directory of a cluster
_KEPT_FILES = 20
# Writing takes milliseconds: an unfinished file of this age is that of a run which was killed.
_ABANDONED_SECONDS = 60.0
_UNFINISHED = ".new"
_EVERY_SECONDS = 0.5
_MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class RunPoint:
    """A moment of a run. seconds: time since its start. requests, failed, output_tokens: numbers so far.
    ttft, e2e: medians of what was served since the point before, in seconds; None: nothing was."""

    seconds: float
    requests: int
    failed: int
    running: int
    output_tokens: int
    ttft: float | None
    e2e: float | None


def point(seconds: float, drive: Drive, fresh: Sequence[LoadRecord]) -> RunPoint:
    served = [one for one in fresh if one.served]
    return RunPoint(
        seconds=round(seconds, 2),
        requests=len(drive.records),
        failed=drive.failed,
        running=drive.running,
        output_tokens=drive.output_tokens,
        ttft=round(statistics.median(one.ttft for one in served), 5) if served else None,
        e2e=round(statistics.median(one.e2e for one in served), 5) if served else None,
    )


def thinned(points: Sequence[RunPoint]) -> list[RunPoint]:
    """Returns every second point, with the last one."""
    return [*points[:-1:2], points[-1]]


class RunFile:
    """A context around a run. path: None: there is no file. A run that raises is kept as failed. Errors:
    LLMServeError when the file cannot be written at the start; later it is only out of date."""

    def __init__(self, path: Path | None, load: str) -> None:
        """load: the load in one line for people."""
        self._path = path
        self._points: list[RunPoint] = []
        self._about: dict[str, object] = {
            "state": "starting",
            "process": [os.getpid(), process_fields(os.getpid())[START_FIELD]],
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": load,
            "error": None,
            "report": None,
        }

    def __enter__(self) -> "RunFile":
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._write()
            except OSError as error:
                raise LLMServeError(f"{self._path} cannot be written: {error.strerror}") from error
            _forget_old(self._path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            said = error.message if isinstance(error, LLMServeError) else str(error)
            self._keep(state="failed", error=said or type(error).__name__)

    @asynccontextmanager
    async def watched(self, drive: Drive) -> AsyncIterator[None]:
        """Keeps the file up to date while the load runs."""
        if self._path is None:
            yield
            return
        try:
            async with running_beside("bench.file", self._follow(drive)):
                yield
        finally:
            self._look(drive)

    def ended(self, report: LoadReport) -> None:
        self._keep(state="ended", report=asdict(report))

    async def _follow(self, drive: Drive) -> None:
        every = _EVERY_SECONDS
        while True:
            self._look(drive)
            if len(self._points) > _MOST_POINTS:
                self._points, every = thinned(self._points), 2 * every
            await asyncio.sleep(every)

    def _look(self, drive: Drive) -> None:
        known = self._points[-1].requests if self._points else 0
        self._points.append(point(drive.watch.now(), drive, drive.records[known:]))
        self._keep(state="running")

    def _keep(self, **more: object) -> None:
        self._about |= more
        if self._path is not None:
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        assert self._path is not None, "there is no file"
        fresh = self._path.with_suffix(_UNFINISHED)
        text = json.dumps({**self._about, "points": [asdict(one) for one in self._points]})
        fresh.write_text(text)
        os.replace(fresh, self._path)


def new_path(run_dir: Path) -> Path:
    """Returns the path of a run that begins now, below the run directory of its cluster."""
    return run_dir / FOLDER / f"{time.time_ns() // 1_000_000}.json"


def _forget_old(folder: Path) -> None:
    """Removes the oldest runs, and what runs that were killed have left."""
    for path in sorted(folder.glob("*.json"))[:-_KEPT_FILES]:
        path.unlink(missing_ok=True)
    for path in folder.glob(f"*{_UNFINISHED}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
