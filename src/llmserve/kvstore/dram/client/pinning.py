"""Pins the pool's memory, as this process maps it, for the copies of a device.

Pinning goes in steps, as a pool has many GB, and blocks are copied meanwhile: a block that does not lie in a
pinned step is copied through the slots of a staging. So nobody waits, and a pool that cannot be pinned, or
only in part, still serves.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.core.request import PairStatus
from llmserve.transfer.devices import Bytes, Copies
from llmserve.transfer.engine.counters import PairMatrix

_log = logging.getLogger(__name__)
STEP_BYTES = 1 << 30


class ArenaPinning:
    """Owns a thread from the constructor until all is pinned. Any thread may ask."""

    def __init__(self, manager: str, memory: Bytes, copies: Copies, matrix: PairMatrix) -> None:
        """manager: name of the pool's KV manager. memory: its data, mapped until `close`. matrix: gets a row
        when not all of it can be pinned."""
        self._name, self._memory, self._copies, self._matrix = manager, memory, copies, matrix
        self._unpins: list[Callable[[], None]] = []
        self._reason = ""
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="kv-store-pin", daemon=True)
        matrix.add(self._rows)
        self._thread.start()

    def holds(self, offset: int, length_bytes: int) -> bool:
        """Whether these bytes of the memory lie in one step that is pinned: a copy must not cross two."""
        step = offset // STEP_BYTES
        return step < len(self._unpins) and (offset + length_bytes - 1) // STEP_BYTES == step

    def wait(self) -> None:
        """Waits until the thread has pinned what it can."""
        self._thread.join()

    def close(self) -> None:
        """Unpins all, after the last copy. Waits for the step that is being pinned. Idempotent."""
        self._stops = True
        self._thread.join()
        while self._unpins:
            with suppress(TransferError):  # the mapping goes anyway
                self._unpins.pop()()
        self._matrix.remove(self._rows)
        self._memory = np.empty(0, np.uint8)  # memory that is shown stays mapped

    # -- on the thread

    def _run(self) -> None:
        for start in range(0, len(self._memory), STEP_BYTES):
            if self._stops:
                return
            try:
                self._unpins.append(self._copies.pin(self._memory[start : start + STEP_BYTES]))
            except TransferError as error:
                self._give_up(start, error.message)
                return

    def _give_up(self, pinned_bytes: int, why: str) -> None:
        gib = 1 << 30
        self._reason = f"{pinned_bytes / gib:.1f} of {len(self._memory) / gib:.1f} GiB are pinned: {why}"
        _log.warning("kv pool of %s: %s; the rest is copied through a staging", self._name, self._reason)

    def _rows(self) -> Iterable[PairStatus]:
        if self._reason:
            name = f"pinned memory of {self._name}"
            yield PairStatus("", name, False, "unavailable", self._reason, 0.0, 0.0, 0, 0, 0.0, 0)
