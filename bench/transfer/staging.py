"""GB/s of `Staging` over a fake device, beside the same copies without it.

The copies are those of the fake device in both: a thread that copies one slot after the other. Without
staging all of them are started at once into two slots, and the last one is waited for; nobody looks at the
bytes. What staging adds are the slots' hand-out, a wait for each copy and the call of the network, which does
nothing here. Both take turns, so that a slow moment of the machine hits both; the ratio is that of the best
rounds. The goal is 0.9.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from bench.table import Figure, markdown
from llmserve.transfer.base import Spans
from llmserve.transfer.devices import Copies, Mark, RegionCopies, Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.devices.staging import SLOT_BYTES
from llmserve.transfer.spans import split

_MEMORY_BYTES = 256 << 20
_LATE_SECONDS = 0.0001
_PIECES = (4 << 20, 64 << 10, 16 << 10)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9, help="rounds")


def run(repeats: int = 9) -> str:
    device = FakeDevice(lateness_seconds=_LATE_SECONDS)
    try:
        rows = [
            _row(_Copying(device, piece_bytes), direction, repeats)
            for piece_bytes in _PIECES
            for direction in ("outgoing", "incoming")
        ]
    finally:
        device.close()
    return markdown(["256 MiB in pieces of", "direction", "staging GB/s", "without GB/s", "ratio"], rows)


class _Copying:
    """All of a region of the device, in pieces that lie in no order."""

    def __init__(self, device: Copies, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        self._staging = Staging(device)
        self._memory = RegionCopies([device.allocate(_MEMORY_BYTES)], device)
        count = _MEMORY_BYTES // piece_bytes
        offsets = np.random.default_rng(7).permutation(count).astype(np.int64) * piece_bytes
        self._spans = Spans(np.zeros(count, np.int64), offsets, np.full(count, piece_bytes))
        self._slots = [device.pinned(SLOT_BYTES) for _ in range(2)]

    def outgoing(self) -> None:
        self._staging.outgoing(self._memory, self._spans, lambda _: None)

    def incoming(self) -> None:
        self._staging.incoming(self._memory, self._spans, lambda _: None)

    def outgoing_without(self) -> None:
        self._copy_all(self._memory.gather)

    def incoming_without(self) -> None:
        self._copy_all(self._memory.scatter)

    def _copy_all(self, copy: Callable[..., Mark]) -> None:
        chunks = enumerate(split(self._spans, SLOT_BYTES))
        [copy(chunk, self._slots[number % 2]) for number, chunk in chunks][-1].wait()


def _row(copying: _Copying, direction: str, repeats: int) -> list[object]:
    staged, bare = getattr(copying, direction), getattr(copying, f"{direction}_without")
    staged(), bare()
    pairs = [(_speed(staged), _speed(bare)) for _ in range(repeats)]
    ours, floor = (Figure.of(column) for column in zip(*pairs, strict=True))
    size = f"{copying.piece_bytes >> 10} KiB"
    return [size, direction, ours.text(2), floor.text(2), f"{ours.high / floor.high:.2f}"]


def _speed(move: Callable[[], None]) -> float:
    started = time.perf_counter()
    move()
    return _MEMORY_BYTES / (time.perf_counter() - started) / 1e9
