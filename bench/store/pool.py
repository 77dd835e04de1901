"""GB/s of blocks into and out of the DRAM tier, beside memcpy of as many blocks in one piece each, in turns.

A worker process copies, on one thread; the pool belongs to this process. Each copy uses other memory than
the one before. GB/s are those of a core: by the thread's CPU time, so that a busy machine takes no part.
"""

import argparse
import ctypes
import mmap
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from bench.table import Figure, markdown
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import Copied, CopyOutcome, PoolCopier
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.slots import SlotPool
from llmserve.transfer.base import Region, Spans

_MEMORY_BYTES = 384 << 20  # more than any cache holds
_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = None


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    layers: int
    piece_bytes: int
    batch: int  # blocks of one call
    even: bool = True  # layers lie equally far apart

    @property
    def block_bytes(self) -> int:
        return self.layers * self.piece_bytes


SHAPES = (
    Shape("2.8 MiB: 30 layers, one tensor", 30, 96 << 10, 8),
    Shape("2.8 MiB: 30 layers, 30 tensors", 30, 96 << 10, 8, even=False),
    Shape("120 KiB: 30 layers", 30, 4 << 10, 64),
    Shape("20 MiB: 80 layers", 80, 256 << 10, 4),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="rounds")


def run(repeats: int) -> str:
    rows = [row for shape in SHAPES for row in _rows(shape, repeats)]
    return markdown(("block", "copy", "GB/s (quartiles)", "memcpy", "ratio"), rows)


def _rows(shape: Shape, rounds: int) -> list[tuple[str, ...]]:
    arena = Arena("bench", _MEMORY_BYTES + (64 << 20))
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, shape, rounds), daemon=True)
    process.start()
    try:
        pipe.send((arena.description(), _slots(arena, shape)))
        rows: list[tuple[str, ...]] = pipe.recv()
    finally:
        process.join(60)
        process.kill()
        process.join()
        arena.close()
    return rows


def _slots(arena: Arena, shape: Shape) -> list[Slot]:
    slabs = SlabMap(arena.shape.capacity_bytes)
    slabs.expect(shape.block_bytes)
    count = _MEMORY_BYTES // shape.block_bytes // shape.batch * shape.batch
    slots = SlotPool(slabs, arena.generations).take([shape.block_bytes] * count)
    assert isinstance(slots, tuple), slots
    return list(slots)


# -- the worker


class _Memory:
    """Layers in regions of their own, blocks back to back, as engines keep them."""

    def __init__(self, shape: Shape, blocks: int) -> None:
        self._shape = shape
        layer_bytes = blocks * shape.piece_bytes
        gaps = [0 if shape.even else mmap.PAGESIZE * (layer % 3) for layer in range(shape.layers)]
        self._memory = _aligned(shape.layers * layer_bytes + sum(gaps))
        starts = self._memory.ctypes.data + np.cumsum([layer_bytes] * shape.layers) - layer_bytes
        addresses = (starts + np.cumsum(gaps)).tolist()
        self.regions = [Region(address, layer_bytes) for address in addresses]

    def spans(self, blocks: npt.NDArray[np.int64]) -> Spans:
        regions = np.tile(np.arange(self._shape.layers), len(blocks))
        offsets = np.repeat(blocks * self._shape.piece_bytes, self._shape.layers)
        return Spans(regions, offsets, np.full_like(offsets, self._shape.piece_bytes))


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    memory = np.ones(size + mmap.PAGESIZE, np.uint8)
    return memory[-memory.ctypes.data % mmap.PAGESIZE :][:size]


def _work(pipe: Connection, shape: Shape, rounds: int) -> None:
    description, slots = pipe.recv()
    arena = AttachedArena(description)
    arena.populate()
    memory = _Memory(shape, len(slots))
    copier = PoolCopier(arena, memory.regions)
    near, far = _aligned(_MEMORY_BYTES), _aligned(_MEMORY_BYTES)
    floor = _floor(near, far, shape)
    rates: dict[str, list[float]] = {}
    for name, way in _ways(copier, shape, slots, memory):
        for number in range(rounds * len(slots) // shape.batch):
            rates.setdefault(f"{name} memcpy", []).append(floor(number))
            rates.setdefault(name, []).append(way(number))
    pipe.send(list(_table(shape, rates)))
    arena.close()


def _floor(near: npt.NDArray[np.uint8], far: npt.NDArray[np.uint8], shape: Shape) -> Callable[[int], float]:
    """As many blocks, each in one piece, from and to anywhere."""
    size = shape.block_bytes
    places = np.random.default_rng(8).permutation(len(near) // size)

    def copy(number: int) -> float:
        numbers = np.arange(number * shape.batch, (number + 1) * shape.batch) % len(places)
        targets, sources = near.ctypes.data + numbers * size, far.ctypes.data + places[numbers] * size
        pairs = list(zip(targets.tolist(), sources.tolist(), strict=True))
        started = time.thread_time()
        for target, source in pairs:
            _memcpy(target, source, size)
        return shape.batch * size / (time.thread_time() - started) / 1e9

    return copy


def _ways(
    copier: PoolCopier, shape: Shape, slots: list[Slot], memory: _Memory
) -> Iterator[tuple[str, Callable[[int], float]]]:
    order = np.random.default_rng(7).permutation(len(slots)).astype(np.int64)
    batches = len(slots) // shape.batch
    sums: dict[int, int] = {}

    def timed(operation: str) -> Callable[[int], float]:
        def copy(number: int) -> float:
            first = number % batches * shape.batch
            spans = memory.spans(order[first : first + shape.batch])
            chosen = slots[first : first + shape.batch]
            leased = [Slot(s.offset, s.length_bytes, s.generation, sums.get(s.offset, 0)) for s in chosen]
            started = time.thread_time()
            done: list[Copied] = getattr(copier, operation)(leased, spans)
            seconds = time.thread_time() - started
            assert all(one.outcome is CopyOutcome.DONE for one in done), done
            if operation == "store":
                sums.update((slot.offset, one.checksum) for slot, one in zip(chosen, done, strict=True))
            return shape.batch * shape.block_bytes / seconds / 1e9

        return copy

    for operation in ("store", "load"):
        yield operation, timed(operation)


def _table(shape: Shape, rates: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    for name, values in rates.items():
        if not name.endswith("memcpy"):
            ours, floor = _quartiles(values), _quartiles(rates[f"{name} memcpy"])
            yield shape.name, name, ours.text(1), floor.text(1), f"{ours.median / floor.median:.2f}"


def _quartiles(values: list[float]) -> Figure:
    low, median, high = statistics.quantiles(values, n=4)
    return Figure(median, low, high)
