"""GB/s of `Staging` over a fake device, beside the same copies without it and beside plain memcpy.

The copies are those of the fake device in the first two: a thread that copies one slot after the other, each
by a system call, in which other threads run.
Without staging all of them are started at once into as many slots as a transfer has, and the last one is
waited for; nobody looks at the bytes. What staging adds are the slots' hand-out, a wait for each copy and the
call of the network, which does nothing here. memcpy copies the same bytes in slots, in order, in the calling
thread: what one core does at best, without the cost of pieces.

All three take turns in every round, in another order each time, so that a slow moment of the machine hits
all. `of these` is the ratio to the same copies, whose goal is 0.9: of the best rounds, and in brackets the
median of the rounds' own ratios. Where these two are far apart, or memcpy varies by more than a fifth, the
machine was not quiet, and a line says so.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

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
_REPEATS = 30
_SLOTS = 3  # that a transfer has in flight, so that the same memory is used with and without staging


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="rounds")


def run(repeats: int = _REPEATS) -> str:
    device = FakeDevice(lateness_seconds=_LATE_SECONDS)
    try:
        timings = [
            _Timings.of(_Copying(device, piece_bytes), direction, repeats)
            for piece_bytes in _PIECES
            for direction in ("outgoing", "incoming")
        ]
    finally:
        device.close()
    headings = (
        *("256 MiB in pieces of", "direction", "staging GB/s", "the same copies"),
        *("of these", "memcpy", "of memcpy"),
    )
    table = markdown(headings, [one.cells() for one in timings])
    loud = sum(not one.was_quiet for one in timings)
    return table + (f"\n\nNot quiet: memcpy varied by more than a fifth in {loud} rows." if loud else "")


class _Copying:
    """All of a region of the device, in pieces that lie in no order; and as much host memory."""

    def __init__(self, device: Copies, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        self._staging = Staging(device)
        self._memory = RegionCopies([device.allocate(_MEMORY_BYTES)], device)
        count = _MEMORY_BYTES // piece_bytes
        offsets = np.random.default_rng(7).permutation(count).astype(np.int64) * piece_bytes
        self._spans = Spans(np.zeros(count, np.int64), offsets, np.full(count, piece_bytes))
        self._slots = [device.pinned(SLOT_BYTES) for _ in range(_SLOTS)]
        self._host = np.ones(_MEMORY_BYTES // SLOT_BYTES * SLOT_BYTES, np.uint8).reshape(-1, SLOT_BYTES)

    def outgoing(self) -> None:
        self._staging.outgoing(self._memory, self._spans, lambda _: None)

    def incoming(self) -> None:
        self._staging.incoming(self._memory, self._spans, lambda _: None)

    def outgoing_without(self) -> None:
        self._copy_all(self._memory.gather)

    def incoming_without(self) -> None:
        self._copy_all(self._memory.scatter)

    def outgoing_memcpy(self) -> None:
        for number, chunk in enumerate(self._host):
            np.copyto(self._slots[number % _SLOTS], chunk)

    def incoming_memcpy(self) -> None:
        for number, chunk in enumerate(self._host):
            np.copyto(chunk, self._slots[number % _SLOTS])

    def _copy_all(self, copy: Callable[..., Mark]) -> None:
        chunks = enumerate(split(self._spans, SLOT_BYTES))
        [copy(chunk, self._slots[number % _SLOTS]) for number, chunk in chunks][-1].wait()


@dataclass(frozen=True, slots=True)
class _Timings:
    """GB/s of each round."""

    piece_bytes: int
    direction: str
    staged: list[float]
    bare: list[float]
    memcpy: list[float]

    @classmethod
    def of(cls, copying: _Copying, direction: str, repeats: int) -> "_Timings":
        moves = [getattr(copying, f"{direction}{kind}") for kind in ("", "_without", "_memcpy")]
        speeds: list[list[float]] = [[] for _ in moves]
        for move in moves:
            move()
        for number in range(repeats):
            for turn in range(len(moves)):
                at = (number + turn) % len(moves)
                speeds[at].append(_speed(moves[at]))
        return cls(copying.piece_bytes, direction, *speeds)

    @property
    def was_quiet(self) -> bool:
        return min(self.memcpy) > 0.8 * max(self.memcpy)

    def cells(self) -> tuple[object, ...]:
        ours, bare, memcpy = map(Figure.of, (self.staged, self.bare, self.memcpy))
        rounds = statistics.median(one / other for one, other in zip(self.staged, self.bare, strict=True))
        return (
            f"{self.piece_bytes >> 10} KiB",
            self.direction,
            ours.text(2),
            bare.text(2),
            f"{ours.high / bare.high:.2f} ({rounds:.2f})",
            memcpy.text(2),
            f"{ours.high / memcpy.high:.2f}",
        )


def _speed(move: Callable[[], None]) -> float:
    started = time.perf_counter()
    move()
    return _MEMORY_BYTES / (time.perf_counter() - started) / 1e9
