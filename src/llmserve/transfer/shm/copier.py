"""The thread that copies, and the transfers that it steps through."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmserve.core.errors import TransferError
from llmserve.transfer.base import TransferState, TransferStatus

_JOIN_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class ShmTransfer:
    """One batch. Each item of `steps` is one system call, made under the lock."""

    steps: Iterator[None]
    status: TransferStatus = field(default_factory=lambda: TransferStatus(TransferState.RUNNING))
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """To the end, on the thread of its caller."""
        while self._advance():
            pass

    def stop(self, reason: str, patience_seconds: float) -> None:
        """Ends it as FAILED, unless it has ended before. When it returns, memory is no longer touched.
        Errors: TransferError when the call under way does not return so soon."""
        self._stopped = True
        if not self._lock.acquire(timeout=patience_seconds):
            raise TransferError("shm: a copy is still under way")
        try:
            if self.status.state is TransferState.RUNNING:
                self.status = TransferStatus(TransferState.FAILED, f"shm: {reason}")
        finally:
            self._lock.release()

    def _advance(self) -> bool:
        """Whether there is more to do."""
        with self._lock:
            if self._stopped:
                return False
            self.status = self._step()
            return self.status.state is TransferState.RUNNING

    def _step(self) -> TransferStatus:
        try:
            next(self.steps)
        except StopIteration:
            return TransferStatus(TransferState.DONE)
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        return self.status


class Copier:
    """Runs transfers one after the other; sleeps while there are none."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[ShmTransfer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kv-shm-copy", daemon=True)
        self._thread.start()

    def submit(self, transfer: ShmTransfer) -> None:
        self._queue.put(transfer)

    def close(self) -> None:
        """The transfers have been stopped."""
        self._queue.put(None)
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            transfer.run()
