"""Files and batches in a directory, which several processes of one machine share."""

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from llmserve.apiserver.batches.storage import PIECE_BYTES
from llmserve.core.aio import run_in_thread
from llmserve.core.errors import StorageFull, Unavailable

_T = TypeVar("_T")
_THREADS = 4
_FRESH = "."  # what a name begins with while its object is being written
_FULL = (ENOSPC, EDQUOT)


class FileClaim:
    """The lock of a file, which the kernel releases when the process ends, however that happens."""

    def __init__(self, fd: int) -> None:
        self.lost = asyncio.Event()
        self._fd: int | None = fd

    async def release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class DiskStorage:
    """root: the directory, which is made when it is missing. Errors: OSError, when it cannot be made."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = ThreadPoolExecutor(_THREADS, "batches")
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __repr__(self) -> str:
        return f"<DiskStorage {self._root}>"

    async def put(self, path: str, data: bytes) -> None:
        await self._run(lambda: _put(self._root / path, data))

    async def append(self, path: str, data: bytes) -> None:
        await self._run(lambda: _append(self._root / path, data))

    async def get(self, path: str) -> bytes | None:
        return await self._run(lambda: _get(self._root / path))

    async def read(self, path: str) -> AsyncGenerator[bytes, None]:
        file = await self._run(lambda: _opened(self._root / path))
        if file is None:
            return
        with file:
            while piece := await self._run(lambda: file.read(PIECE_BYTES)):
                yield piece

    async def names(self, folder: str) -> list[str]:
        return await self._run(lambda: _names(self._root / folder))

    async def delete(self, path: str) -> None:
        await self._run(lambda: (self._root / path).unlink(missing_ok=True))

    async def claim(self, path: str) -> FileClaim | None:
        fd = await self._run(lambda: _locked(self._root / path))
        return None if fd is None else FileClaim(fd)

    async def _run(self, job: Callable[[], _T]) -> _T:
        try:
            return await run_in_thread(self._threads, job)
        except OSError as error:
            kind = StorageFull if error.errno in _FULL else Unavailable
            raise kind(f"the directory of batches cannot be used: {error.strerror or error}") from error


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{_FRESH}{path.name}.{uuid4().hex}")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    _sync_folder(path)


def _append(path: Path, data: bytes) -> None:
    """Adds all of it or, when the disk is full, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fdatasync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise
    if not before:
        _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """Makes the name of a new file as durable as its contents."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _get(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(_FRESH))
    except FileNotFoundError:
        return []


def _locked(path: Path) -> int | None:
    """Returns a descriptor that holds the lock of a file; None when another one holds it, or there is no
    file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    if os.fstat(fd).st_nlink == 0:  # deleted between the two calls: its batch has ended
        os.close(fd)
        return None
    return fd
