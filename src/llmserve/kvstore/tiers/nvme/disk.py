"""The files of a tier in its directory: the lock, direct I/O, and room that is reserved in advance.

Everything here blocks. Errors are OSError unless said otherwise.
"""

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES

_log = logging.getLogger(__name__)
_NOT_SUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class TierFile(Protocol):
    """Usable from any thread. A file opened for direct I/O takes buffers and offsets of whole pages only."""

    size_bytes: int

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Returns the number of bytes read, which is less than asked for only at the end of the file."""

    def write(self, buffers: Sequence[memoryview], offset: int) -> None: ...

    def sync(self) -> None: ...

    def resize(self, size_bytes: int) -> None:
        """Reserves room for a longer file, so that a full disk is noticed here; or cuts the file."""

    def close(self) -> None: ...


class Disk(Protocol):
    """is_direct: whether the directory takes direct I/O."""

    is_direct: bool

    def names(self) -> list[str]:
        """Names of all files in the directory, whoever made them."""

    def open(self, name: str, *, direct: bool) -> TierFile:
        """Opens a file, which is made when it is not there. direct: if the directory takes that."""

    def remove(self, name: str) -> None:
        """Removes a file. It is no error when there is none."""

    def close(self) -> None:
        """Gives the directory back. Idempotent."""


def is_no_space(error: OSError) -> bool:
    return error.errno in _NO_SPACE


class LocalFile:
    def __init__(self, path: Path, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.size_bytes = os.fstat(self._fd).st_size

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        wanted = sum(len(buffer) for buffer in buffers)
        done = os.preadv(self._fd, buffers, offset)
        while 0 < done < wanted:
            more = os.preadv(self._fd, _after(buffers, done), offset + done)
            if more == 0:
                break
            done += more
        return done

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        wanted = sum(len(buffer) for buffer in buffers)
        done = os.pwritev(self._fd, buffers, offset)
        while done < wanted:
            done += os.pwritev(self._fd, _after(buffers, done), offset + done)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def resize(self, size_bytes: int) -> None:
        try:
            if size_bytes > self.size_bytes:
                os.posix_fallocate(self._fd, self.size_bytes, size_bytes - self.size_bytes)
            else:
                os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            os.ftruncate(self._fd, size_bytes)  # where the file system cannot reserve room
        self.size_bytes = size_bytes

    def close(self) -> None:
        os.close(self._fd)


class LocalDisk:
    """A directory that no other process uses: its lock is held until `close` or the end of the process.
    Errors of the constructor: StartFailed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = _Lock(directory)
        try:
            self.is_direct = _takes_direct_io(directory)
        except OSError as error:
            self._lock.release()
            raise StartFailed(f"{directory} cannot be written: {error.strerror}") from error
        if not self.is_direct:
            _log.warning("%s takes no direct I/O: blobs go through the page cache", directory)

    def names(self) -> list[str]:
        return sorted(os.listdir(self._directory))

    def open(self, name: str, *, direct: bool) -> LocalFile:
        return LocalFile(
            self._directory / name, os.O_CREAT | (os.O_DIRECT if direct and self.is_direct else 0)
        )

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def close(self) -> None:
        self._lock.release()


class _Lock:
    """The lock of a directory, which is made if need be. The kernel releases it when its holder dies.
    Errors of the constructor: StartFailed."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "lock").open("a+")
        except OSError as error:
            raise StartFailed(f"{directory} cannot be used for KV blocks: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(20).strip() or "unknown"
            self._file.close()
            raise StartFailed(
                f"{directory} is in use by another process (pid {holder}): give each tier its own directory"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _takes_direct_io(directory: Path) -> bool:
    """Tries it with one page. A full disk counts as one that does, since it can still be read."""
    path = directory / "probe"
    try:
        file = LocalFile(path, os.O_CREAT | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        return False
    try:
        with mmap.mmap(-1, ALIGNMENT_BYTES) as page:
            os.pwritev(file._fd, [page], 0)
            return os.preadv(file._fd, [page], 0) == ALIGNMENT_BYTES
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        if is_no_space(error):
            return True
        raise
    finally:
        file.close()
        path.unlink(missing_ok=True)


def _after(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """The rest of the buffers when so many bytes are done."""
    left = []
    for buffer in buffers:
        if done < len(buffer):
            left.append(buffer[done:])
        done = max(0, done - len(buffer))
    return left
