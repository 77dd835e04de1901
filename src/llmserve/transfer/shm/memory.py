"""Linux's process_vm_readv and process_vm_writev, and the division of a batch into calls."""

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Int64Array
from llmserve.transfer.spans import vectors

CALL_PIECES = 1024  # IOV_MAX on Linux
CALL_BYTES = 16 << 20  # takes a few milliseconds; a transfer can be cancelled between two calls
_Vector = ctypes.c_uint64 * 2  # struct iovec
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1).value
_REASONS = {
    errno.ESRCH: "process {pid} has ended",
    errno.EFAULT: "process {pid}, or this one, does not have that memory (any more)",
    errno.EPERM: "this process may not access the memory of process {pid}: it must run as the same user "
    "or have CAP_SYS_PTRACE, and kernel.yama.ptrace_scope must be 0 or 1",
}


@dataclass(frozen=True, slots=True)
class Copy:
    """One system call. local, remote: arrays of struct iovec, address and length."""

    local: Int64Array
    remote: Int64Array
    total_bytes: int


def copies(local: Int64Array, remote: Int64Array, lengths: Int64Array) -> Iterator[Copy]:
    """Cuts n pieces, given by their addresses and lengths, into calls of at most CALL_BYTES each."""
    if (lengths > CALL_BYTES).any():
        local, remote, lengths = _cut(local, remote, lengths)
    local, remote = vectors(local, lengths), vectors(remote, lengths)
    ends = np.cumsum(lengths)
    first, done = 0, 0
    while first < len(lengths):
        full = int(ends.searchsorted(done + CALL_BYTES, side="right"))
        last = min(full, first + CALL_PIECES)
        end = int(ends[last - 1])
        yield Copy(local[first:last], remote[first:last], end - done)
        first, done = last, end


def _cut(
    local: Int64Array, remote: Int64Array, lengths: Int64Array
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Cuts pieces so that none is longer than CALL_BYTES."""
    parts = -(-lengths // CALL_BYTES)
    piece = np.repeat(np.arange(len(lengths)), parts)
    skipped = (np.arange(len(piece)) - np.repeat(np.cumsum(parts) - parts, parts)) * CALL_BYTES
    return local[piece] + skipped, remote[piece] + skipped, np.minimum(lengths[piece] - skipped, CALL_BYTES)


class ProcessMemory:
    """Makes the system calls, from any thread; other Python threads run meanwhile. Errors of every method:
    TransferError."""

    def __init__(self) -> None:
        """Where Yama keeps processes apart (ptrace_scope 1), lets peers access this process for its whole
        life, as another of its transports may need that, too. Errors: TransportUnavailable."""
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            self._readv = _declared(libc.process_vm_readv)
            self._writev = _declared(libc.process_vm_writev)
            prctl = libc.prctl
        except (OSError, AttributeError) as error:
            raise TransportUnavailable(f"shm: this system has no process_vm_readv: {error}") from error
        prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)  # an error means that there is no Yama

    def read(self, pid: int, copy: Copy) -> None:
        local, remote = copy.local, copy.remote
        done = self._readv(pid, local.ctypes.data, len(local), remote.ctypes.data, len(remote), 0)
        _check(done, copy.total_bytes, pid)

    def write(self, pid: int, copy: Copy) -> None:
        local, remote = copy.local, copy.remote
        done = self._writev(pid, local.ctypes.data, len(local), remote.ctypes.data, len(remote), 0)
        _check(done, copy.total_bytes, pid)

    def fetch(self, pid: int, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        local, remote = _Vector(ctypes.addressof(buffer), size), _Vector(address, size)
        _check(self._readv(pid, local, 1, remote, 1, 0), size, pid)
        return buffer.raw


def _declared(function: Any) -> Any:
    function.restype = ctypes.c_ssize_t
    vectors = [ctypes.c_void_p, ctypes.c_ulong]
    function.argtypes = [ctypes.c_int, *vectors, *vectors, ctypes.c_ulong]
    return function


def _check(done: int, wanted: int, pid: int) -> None:
    """done: the bytes that a call copied, or -1. Errors: TransferError."""
    if done == wanted:
        return
    code = ctypes.get_errno() if done < 0 else errno.EFAULT  # it stops where memory ends
    raise TransferError("shm: " + _REASONS.get(code, os.strerror(code)).format(pid=pid))
