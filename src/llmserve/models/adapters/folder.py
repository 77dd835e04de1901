"""A directory of adapters that the processes of a host share: on disk, or in DRAM (tmpfs).

Each adapter has a directory of its digest's name, which gets that name by one rename when it is complete, and
never changes afterwards. A process that uses an adapter holds a shared lock of its directory; whoever removes
it needs the exclusive one. The kernel frees locks when a process dies, so nothing is held by the dead, and
what they left half done is known by being unlocked.

    <digest>/               an adapter, with its record
    .partial-BYTES-NAME/    one that is being made and takes up to BYTES
    .removed-NAME/          one that is being deleted
    .room, .making-NN       locks: one process at a time makes room; one makes a given adapter
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from llmserve.core.adapters import is_digest
from llmserve.core.errors import LLMServeError, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.record import AdapterRecord, read_record
from llmserve.models.files import Progress, file_lock, silent

_PARTIAL, _REMOVED = ".partial-", ".removed-"
_LOCK_SECONDS = 3600.0
_ROOM_SECONDS = 60.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_MARGIN_BYTES = 1 << 20  # stays free on the file system for directories and records

Fill = Callable[[Path], AdapterRecord]
"""Writes the files of an adapter into an empty directory."""


class AdapterFolder:
    """limit: the manifest's key for capacity_bytes, for messages. Any thread may call any method."""

    def __init__(self, path: Path, capacity_bytes: int, limit: str) -> None:
        """Removes what killed processes left half done. Errors: OSError; LLMServeError when the directory
        belongs to somebody else, who could put other weights there."""
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.limit = limit
        self._holds: dict[AdapterDigest, int] = {}  # file descriptors
        self._lock = threading.Lock()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path)
        with self._room_lock():
            self._remove_leftovers()

    def __repr__(self) -> str:
        return f"<AdapterFolder {self.path} holds={len(self._holds)}>"

    def find(self, digest: AdapterDigest) -> AdapterRecord | None:
        """Returns None when it is not there, or not as it was written."""
        return read_record(self._of(digest)) if is_digest(digest) else None

    def hold(self, digest: AdapterDigest) -> AdapterRecord:
        """Keeps every process from removing it, and counts as a use. Idempotent. Errors: NotFound."""
        with self._lock:
            fd = self._holds.get(digest, -1)
            fd = _locked(self._of(digest), fcntl.LOCK_SH) if fd < 0 else fd
            record = self.find(digest) if fd >= 0 else None
            if record is None:
                self._holds.pop(digest, None)
                _unlock(fd)
                raise NotFound(f"adapter {digest} is not in {self.path}")
            with suppress(PermissionError):  # it is another user's, whose LRU goes by his own uses
                os.utime(fd)
            self._holds[digest] = fd
            return record

    @contextmanager
    def using(self, digest: AdapterDigest) -> Iterator[AdapterRecord]:
        """Holds an adapter for the duration, apart from `hold` and `release`. Errors: NotFound."""
        fd = _locked(self._of(digest), fcntl.LOCK_SH)
        try:
            record = self.find(digest) if fd >= 0 else None
            if record is None:
                raise NotFound(f"adapter {digest} is not in {self.path}")
            yield record
        finally:
            _unlock(fd)

    def release(self, digest: AdapterDigest) -> None:
        """Ends a hold. Ignores an adapter that is not held."""
        with self._lock:
            _unlock(self._holds.pop(digest, -1))

    def remove(self, digest: AdapterDigest) -> None:
        """Ends the own hold, and deletes it unless another process holds it. Ignores an unknown one."""
        self.release(digest)
        if is_digest(digest):
            _remove(self._of(digest))

    def making(self, key: str, progress: Progress) -> AbstractContextManager[None]:
        """Returns the lock under which one process of the host makes the adapter of this key. Errors:
        DeadlineExceeded."""
        stripe = hashlib.sha256(key.encode()).hexdigest()[:2]
        return file_lock(self.path / f".making-{stripe}", progress, "fetches an adapter", _LOCK_SECONDS)

    def put(self, size_bytes: int, fill: Fill) -> AdapterRecord:
        """Makes room, lets `fill` write the adapter, and holds it under the digest of its record. A failure
        leaves nothing. Errors: Unavailable (no room), those of `fill`."""
        with self._partial(size_bytes) as partial:
            record = fill(partial)
            record.write(partial)
            _make_durable(partial)
            return self._publish(partial, record.digest)

    def close(self) -> None:
        """Ends all holds. Idempotent."""
        with self._lock:
            while self._holds:
                _unlock(self._holds.popitem()[1])

    # -- inside

    def _of(self, digest: AdapterDigest) -> Path:
        """Errors: NotFound for what is no digest: it must not become a path to anywhere else."""
        if not is_digest(digest):
            raise NotFound(f"'{digest}' is not the digest of an adapter")
        return self.path / digest

    @contextmanager
    def _partial(self, size_bytes: int) -> Iterator[Path]:
        """Gives a locked directory with room, and deletes it if it still has that name at the end."""
        partial, fd = self._reserve(size_bytes)
        try:
            yield partial
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._full(size_bytes) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _unlock(fd)

    def _room_lock(self) -> AbstractContextManager[None]:
        return file_lock(self.path / ".room", silent, "makes room for adapters", _ROOM_SECONDS)

    def _reserve(self, size_bytes: int) -> tuple[Path, int]:
        with self._room_lock():
            self._remove_leftovers()
            self._make_room(size_bytes)
            partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{size_bytes}-", dir=self.path))
            fd = _locked(partial, fcntl.LOCK_SH)
        if fd < 0:
            raise Unavailable(f"{partial}: was removed while it was made")
        return partial, fd

    def _make_room(self, size_bytes: int) -> None:
        """Removes what was used longest ago and nobody holds. Errors: Unavailable."""
        used = sum(_reserved(one) for one in self._named(_PARTIAL))
        sizes = {path: record.size_bytes for path in self._whole() if (record := read_record(path))}
        used += sum(sizes.values())
        for path in sorted(sizes, key=_last_use):
            if self._fits(used, size_bytes):
                return
            used -= sizes[path] if _remove(path) else 0
        if not self._fits(used, size_bytes):
            raise self._full(size_bytes)

    def _fits(self, used: int, size_bytes: int) -> bool:
        has_space = shutil.disk_usage(self.path).free >= size_bytes + _MARGIN_BYTES
        return has_space and used + size_bytes <= self.capacity_bytes

    def _full(self, size_bytes: int) -> Unavailable:
        free = shutil.disk_usage(self.path).free
        return Unavailable(
            f"{self.path}: no room for an adapter of {size_bytes} bytes: {free} bytes are free on the file "
            f"system, and what is here and in use counts against {self.limit} ({self.capacity_bytes} bytes)"
        )

    def _publish(self, partial: Path, digest: AdapterDigest) -> AdapterRecord:
        """Gives the directory its name, unless a right one has it already, and holds it."""
        target = self._of(digest)
        if self.find(digest) is None:
            self.remove(digest)  # it is damaged, or there is none
            try:
                partial.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                    raise
            _sync(self.path)
        return self.hold(digest)

    def _remove_leftovers(self) -> None:
        damaged = (path for path in self._whole() if read_record(path) is None)
        for path in (*self._named(_PARTIAL), *self._named(_REMOVED), *damaged):
            _remove(path)

    def _named(self, prefix: str) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name.startswith(prefix)]

    def _whole(self) -> list[Path]:
        return [path for path in self.path.iterdir() if is_digest(path.name)]


def _check_owner(path: Path) -> None:
    """Where all users may write, somebody else could have made the directory, and put other weights there."""
    owner = path.stat().st_uid
    if owner != os.geteuid() and path.parent.stat().st_mode & stat.S_IWOTH:
        raise LLMServeError(f"{path}: belongs to user {owner}; adapters must be in a directory of one's own")


def _reserved(partial: Path) -> int:
    size = partial.name.removeprefix(_PARTIAL).partition("-")[0]
    return int(size) if size.isdigit() else 0


def _last_use(path: Path) -> int:
    """Returns 0 for one that another process has just removed."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def _locked(path: Path, kind: int) -> int:
    """Locks a directory without waiting, and returns its descriptor; -1 when it is not there, or locked by
    another one. A directory that was renamed in between is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    _unlock(fd)
    return -1


def _unlock(fd: int) -> None:
    """Forked children may have the descriptor, too, so closing it would not unlock. -1: does nothing."""
    if fd >= 0:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _remove(path: Path) -> bool:
    """Deletes a directory that nobody holds. It loses its name first, so that no half of it is ever seen."""
    fd = _locked(path, fcntl.LOCK_EX)
    if fd < 0:
        return not path.exists()
    try:
        doomed = path.with_name(f"{_REMOVED}{os.getpid()}-{threading.get_ident()}-{path.name[-16:]}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    finally:
        _unlock(fd)
    return True


def _make_durable(folder: Path) -> None:
    """Nobody writes there any more, and after a crash of the machine a name stands for whole files."""
    for file in folder.iterdir():
        file.chmod(0o444)
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot
            os.fsync(fd)
    finally:
        os.close(fd)
