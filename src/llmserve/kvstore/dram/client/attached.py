"""The memory of the pool, as another process of its host has it."""

import os
import select

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import SLOT_ALIGNMENT_BYTES, Slot
from llmserve.kvstore.dram.mapping import Mapping
from llmserve.kvstore.dram.shape import HEAD_BYTES, ArenaDescription, ArenaShape, head
from llmserve.transfer.base import Region


class AttachedArena:
    """The owner's memory, mapped through /proc: nobody can open it who may not read the owner's memory.

    Life: constructor -> close (idempotent). While it is attached the memory stays, also when the owner has
    died: detach then. Any thread may use it."""

    def __init__(self, description: str) -> None:
        """Errors: TransferError: another host or container, another user, or the owner is gone."""
        self._described = ArenaDescription.from_text(description)
        self._described.check_here()
        self._owner = _open_process(self._described.pid)
        try:
            self._mapping = self._map()
        except BaseException:
            os.close(self._owner)
            raise
        self._closed = False

    @property
    def arena_id(self) -> str:
        return self._described.nonce

    @property
    def region(self) -> Region:
        return self._mapping.region

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """The bytes of all slots."""
        return self._mapping.data

    def populate(self) -> None:
        """See Mapping: worth a thread of its own at the start of a worker."""
        self._mapping.populate()

    def owner_lives(self) -> bool:
        """Whether the owner runs: without it, no lease or reservation holds."""
        if self._closed:
            return False
        poll = select.poll()  # select() knows no descriptor above 1,023
        poll.register(self._owner, select.POLLIN)
        return not poll.poll(0)

    def is_current(self, slot: Slot) -> bool:
        """Whether this use of the slot has not ended. Asked after a copy, it vouches for the copy: a call
        that copies ends with taking the interpreter's lock, so nothing of it is read after the word."""
        word = int(self._mapping.generations[slot.offset // SLOT_ALIGNMENT_BYTES])
        return 0 != word == slot.generation

    def note_checksum(self, slot: Slot, checksum: int) -> None:
        """Beside a slot that was written, for its owner, who commits it (0: it was not written)."""
        if self.is_current(slot):
            self._mapping.checksums[slot.page] = checksum

    def place(self, slot: Slot) -> tuple[int, memoryview]:
        """Its address and bytes. Errors: TransferError for one outside of the arena."""
        region = self._mapping.region
        if not 0 <= slot.offset <= slot.offset + slot.length_bytes <= region.length_bytes:
            raise TransferError(f"kv pool: no such slot: {slot}")
        return region.address + slot.offset, self._mapping.view(slot.offset, slot.length_bytes)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._mapping.close()
            os.close(self._owner)

    # -- inside

    def _map(self) -> Mapping:
        described = self._described
        shape = ArenaShape(described.capacity_bytes)
        try:
            fd = os.open(f"/proc/{described.pid}/fd/{described.fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _unreachable(described, error) from error
        try:
            status = os.fstat(fd)
            if (status.st_ino, status.st_size) != (described.inode, shape.total_bytes):
                raise TransferError(f"kv pool: process {described.pid} no longer has it")
            mapping = Mapping(fd, shape)
        except OSError as error:
            raise _unreachable(described, error) from error
        finally:
            os.close(fd)
        if mapping.head(HEAD_BYTES) != head(described.nonce):
            mapping.close()
            raise TransferError(f"kv pool: process {described.pid} no longer has it")
        return mapping


def _open_process(pid: int) -> int:
    """A descriptor that becomes readable when the process ends."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise TransferError(f"kv pool: its owner, process {pid}, has ended") from error


def _unreachable(described: ArenaDescription, error: OSError) -> TransferError:
    return TransferError(
        f"kv pool: cannot attach to memory of process {described.pid} (it must run as the same user): {error}"
    )
