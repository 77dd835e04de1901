"""Files that several processes prepare together: reports of progress, a lock between processes, atomic
writes, and SHA-256 digests, for each of which a file is read once.

A digest is kept as long as the file's size, times and inode stay the same. No digest is kept of a file that
changed shortly before it was read, because a change within the same tick of the file system's clock would not
be seen.
"""

import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmserve.core.errors import DeadlineExceeded, LLMServeError

Progress = Callable[[str], None]
"""Receives a few words on what the preparation does now, whenever that changes."""

_POLL_SECONDS = 0.1


def silent(text: str) -> None:
    """Is a Progress that drops its text."""


@contextmanager
def file_lock(path: Path, progress: Progress, waits_for: str, timeout_seconds: float) -> Iterator[None]:
    """Holds a lock between processes, which the kernel frees when its holder dies. Reports once that it
    waits. Errors: DeadlineExceeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not _try(file.fileno()):
            progress(f"waiting for another process that {waits_for}")
            deadline = time.monotonic() + timeout_seconds
            while not _try(file.fileno()):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"waited {timeout_seconds:.0f} s for another process that {waits_for} ({path})"
                    )
                time.sleep(_POLL_SECONDS)
        yield


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.write_text(text)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def no_room(error: BaseException) -> bool:
    """Returns whether a disk, or what the user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_READ_BYTES = 4 << 20
_MOST_THREADS = 8
_TRIES = 3
_TICK_NS = 2_000_000_000  # the coarsest clock of the file systems in use
_LOCK_SECONDS = 600.0
_REPORT_SECONDS = 5.0
_GB = 1e9


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """on_bytes: receives the size of each piece that was read."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            on_bytes(count)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Found:
    """seen: the file's signature before and after it was read. settled: its last change is old enough that
    the next change alters the signature."""

    seen: list[int]
    sha256: str
    settled: bool


class DigestCache:
    """store: a JSON file that is read at each use and written as well as possible; losing it costs only time.
    When several processes need the same digests, one reads the files and the others wait. The signature
    contains ctime, so that every change of contents through the file system is seen."""

    def __init__(self, store: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._now_ns = now_ns

    def sha256(self, path: Path) -> str:
        """Errors: OSError for a file that cannot be read; LLMServeError for one that keeps changing."""
        return self.sha256_of_all([path])[path]

    def sha256_of_all(self, paths: Sequence[Path], progress: Progress = silent) -> Mapping[Path, str]:
        """Returns the digests of several files, which are read at the same time. Errors: as sha256."""
        known = self._known(paths)
        if len(known) == len(paths):
            return known
        with ExitStack() as stack:
            with suppress(OSError, DeadlineExceeded):  # without the lock, the same files are read twice
                stack.enter_context(
                    file_lock(self._lock_path, progress, "reads the model's files", _LOCK_SECONDS)
                )
            known = self._known(paths)  # another process may have read them meanwhile
            return {**known, **self._read([path for path in paths if path not in known], progress)}

    @property
    def _lock_path(self) -> Path:
        return self._store.with_name(f"{self._store.name}.lock")

    def _known(self, paths: Sequence[Path]) -> dict[Path, str]:
        entries = self._load()
        found = ((path, _known_digest(entries.get(str(path.resolve())), path)) for path in paths)
        return {path: digest for path, digest in found if digest is not None}

    def _read(self, paths: Sequence[Path], progress: Progress) -> dict[Path, str]:
        largest_first = sorted(paths, key=lambda path: path.stat().st_size, reverse=True)
        total = sum(path.stat().st_size for path in paths)
        meter = Meter(total, progress, "reading the model's files for their digest")
        with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
            results = list(threads.map(lambda path: self._read_whole(path, meter), largest_first))
        found = dict(zip(largest_first, results, strict=True))
        self._save(found)
        return {path: one.sha256 for path, one in found.items()}

    def _read_whole(self, path: Path, meter: "Meter") -> _Found:
        for _ in range(_TRIES):
            began_ns, seen = self._now_ns(), _signature(path)
            digest = file_sha256(path, meter.add)
            if _signature(path) == seen:
                return _Found(seen, digest, settled=path.stat().st_ctime_ns + _TICK_NS < began_ns)
        raise LLMServeError(f"{path} changes again and again while it is read")

    def _load(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            loaded = json.loads(self._store.read_text())
            if isinstance(loaded, dict):
                return loaded
        return {}

    def _save(self, found: Mapping[Path, _Found]) -> None:
        entries = {
            str(path.resolve()): {"seen": one.seen, "sha256": one.sha256}
            for path, one in found.items()
            if one.settled
        }
        kept = {key: value for key, value in self._load().items() if os.path.exists(key)}
        with suppress(OSError):
            write_atomically(self._store, json.dumps(kept | entries, indent=1))


class Meter:
    """Reports from time to time how many bytes are done. Several threads call it."""

    def __init__(self, total_bytes: int, progress: Progress, what: str) -> None:
        self._total = total_bytes
        self._progress = progress
        self._what = what
        self._lock = threading.Lock()
        self._done = 0
        self._began = self._reported = time.monotonic()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now < self._reported + _REPORT_SECONDS:
                return
            self._reported = now
            self._progress(
                f"{self._what}: {self._done / _GB:.1f} of {self._total / _GB:.1f} GB, "
                f"{self._done / _GB / (now - self._began):.1f} GB/s"
            )


def _known_digest(entry: object, path: Path) -> str | None:
    """Returns the digest of an entry of the store, if it holds for the file as it is now. Errors: OSError."""
    if not isinstance(entry, dict) or entry.get("seen") != _signature(path):
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) else None


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
