"""A disk of the NVMe tier that fails as it is told to."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmserve.kvstore.tiers.nvme.disk import LocalDisk, LocalFile


@dataclass(slots=True)
class DiskFaults:
    """Error numbers that operations end with; 0: they work. torn_after: so many bytes of a failing write
    reach the medium. bad_offset: reads of it fail, in every file. only: the name of the file that fails;
    empty: all do. writes, reads, syncs: how many there were; landed: the addresses that reads went to."""

    grow: int = 0
    read: int = 0
    write: int = 0
    sync: int = 0
    remove: int = 0
    torn_after_bytes: int = 0
    only: str = ""
    bad_offset: int = -1
    writes: int = 0
    reads: int = 0
    syncs: int = 0
    landed: list[int] = field(default_factory=list)

    def all_fail(self, code: int) -> None:
        self.grow = self.read = self.write = self.sync = self.remove = code


class FaultyFile:
    def __init__(self, name: str, file: LocalFile, faults: DiskFaults) -> None:
        self._name, self._file = name, file
        self._faults = faults

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    @size_bytes.setter
    def size_bytes(self, value: int) -> None:
        self._file.size_bytes = value

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        self._faults.reads += 1
        self._faults.landed.extend(address(buffer) for buffer in buffers)
        self._fail(self._faults.read)
        if offset <= self._faults.bad_offset < offset + sum(len(buffer) for buffer in buffers):
            _fail(errno.EIO)
        return self._file.read(buffers, offset)

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._faults.writes += 1
        if self._faults.write and self._faults.torn_after_bytes and self._is_meant:
            torn = b"".join(buffers)[: self._faults.torn_after_bytes]
            self._file.write([memoryview(torn)], offset)
        self._fail(self._faults.write)
        self._file.write(buffers, offset)

    def sync(self) -> None:
        self._faults.syncs += 1
        self._fail(self._faults.sync)
        self._file.sync()

    def resize(self, size_bytes: int) -> None:
        self._fail(self._faults.grow)
        self._file.resize(size_bytes)

    def close(self) -> None:
        self._file.close()

    @property
    def _is_meant(self) -> bool:
        return self._faults.only in ("", self._name)

    def _fail(self, code: int) -> None:
        if self._is_meant:
            _fail(code)


class FaultyDisk:
    """In buffered mode, so that a torn write may end anywhere."""

    def __init__(self, directory: Path, faults: DiskFaults, *, is_direct: bool = False) -> None:
        self._disk = LocalDisk(directory)
        self._disk.is_direct = self._disk.is_direct and is_direct
        self._faults = faults

    @property
    def is_direct(self) -> bool:
        return self._disk.is_direct

    @is_direct.setter
    def is_direct(self, value: bool) -> None:
        self._disk.is_direct = value

    def names(self) -> list[str]:
        _fail(self._faults.read)
        return self._disk.names()

    def open(self, name: str, *, direct: bool) -> FaultyFile:
        _fail(self._faults.read)
        return FaultyFile(name, self._disk.open(name, direct=direct), self._faults)

    def remove(self, name: str) -> None:
        _fail(self._faults.remove)
        self._disk.remove(name)

    def close(self) -> None:
        self._disk.close()


def address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def _fail(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


EIO, ENOSPC = errno.EIO, errno.ENOSPC
