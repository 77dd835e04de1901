"""GB/s of every transport that works here between two processes, beside its floor.

A batch of ours and one of the floor take turns, so that a slow moment of the machine hits both. Each
transfer uses other memory than the one before it: nothing comes out of a cache.
"""

import argparse
import itertools
import mmap
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.table import Figure, markdown
from bench.transfer.floors import FLOORS, Int64Array, Job, Move, Side
from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import Batch, PeerName, Region, Spans, Transfer, TransferState, Transport
from llmserve.transfer.select import makers

_MEMORY_BYTES = 256 << 20
_TICK_SECONDS = 0.001
_NAP_SECONDS = (
    0.00005  # between two polls, as the transfer engine does where a transport does not tell of ends
)
_JOIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Transfers of so many pieces, which lie apart unless there is one. So many make a figure; so many
    of ours are in flight at once, as when hand-over pulls for several requests."""

    name: str
    piece_bytes: int
    pieces: int
    transfers: int
    in_flight: int = 1

    def jobs(self, operation: str) -> list[Job]:
        random = np.random.default_rng(7)
        near, far = self._offsets(random), self._offsets(random)
        numbers = [number % len(near) for number in range(self.transfers)]
        return [Job(operation, self.piece_bytes, near[number], far[number]) for number in numbers]

    def _offsets(self, random: np.random.Generator) -> Int64Array:
        """Of distinct slots, shape [as many transfers as there is memory for, pieces]."""
        slots = _MEMORY_BYTES // self.piece_bytes
        slots -= slots % self.pieces
        order = random.permutation(slots) if self.pieces > 1 else np.arange(slots)
        return order.reshape(-1, self.pieces).astype(np.int64) * self.piece_bytes


SHAPES = (
    Shape("1 MiB", 1 << 20, 1, 64),
    Shape("1 MiB, 4 in flight", 1 << 20, 1, 64, 4),
    Shape("16 MiB", 16 << 20, 1, 16),
    Shape("256 MiB", 256 << 20, 1, 2),
    Shape("11.25 MiB in 720 pieces", 16 << 10, 30 * 24, 20),  # KV: 30 layers, 24 blocks
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kinds", nargs="+", default=(), help="the transports; default: all that work")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")


def run(kinds: Sequence[str], repeats: int) -> str:
    """kinds: all that work here, if none is named."""
    rows = [row for kind in kinds or _available() for row in _rows(kind, repeats)]
    return markdown(("transport", "batch", "direction", "GB/s", "floor GB/s", "ratio"), rows)


def _available() -> Iterator[str]:
    for kind, make in makers("127.0.0.1").items():
        try:
            make().close()
        except TransportUnavailable:
            continue
        yield kind


def _rows(kind: str, repeats: int) -> Iterator[tuple[str, ...]]:
    with _pair(kind) as pair:
        for shape, operation in itertools.product(SHAPES, ("read", "write")):
            jobs = shape.jobs(operation)
            pair.ours(jobs[: shape.in_flight + 1], shape.in_flight)  # warm both
            pair.floor(jobs[:2])
            figures = [(pair.ours(jobs, shape.in_flight), pair.floor(jobs)) for _ in range(repeats)]
            ours, floor = (Figure.of(column) for column in zip(*figures, strict=True))
            ratio = f"{ours.median / floor.median:.2f}"
            yield kind, shape.name, operation, ours.text(1), floor.text(1), ratio


@dataclass(frozen=True, slots=True)
class Pair:
    """This process's side of a transport and of its floor. GB/s of jobs, one after the other."""

    transport: Transport
    peer: PeerName
    move: Move
    pipe: Connection
    ended: threading.Event  # set when a transfer has ended, by a transport that tells of it
    tells: bool

    def ours(self, jobs: Sequence[Job], in_flight: int) -> float:
        batches = [_batch(job) for job in jobs]
        flying: deque[Transfer] = deque()
        started = time.perf_counter()
        for job, batch in zip(jobs, batches, strict=True):
            if len(flying) == in_flight:
                self._finish(flying.popleft())
            start = self.transport.read if job.operation == "read" else self.transport.write
            flying.append(start(self.peer, batch))
        for transfer in flying:
            self._finish(transfer)
        return _rate(jobs, started)

    def _finish(self, transfer: Transfer) -> None:
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            if self.tells:
                self.ended.wait()
                self.ended.clear()
            else:
                time.sleep(_NAP_SECONDS)
        assert status.state is TransferState.DONE, status.reason

    def floor(self, jobs: Sequence[Job]) -> float:
        self.pipe.send(jobs)
        started = time.perf_counter()
        for job in jobs:
            self.move(job)
        rate = _rate(jobs, started)
        self.pipe.send(None)
        return rate


def _rate(jobs: Sequence[Job], started: float) -> float:
    return sum(job.total_bytes for job in jobs) / (time.perf_counter() - started) / 1e9


def _batch(job: Job) -> Batch:
    return Batch(_spans(job.near, job), _spans(job.far, job))


def _spans(offsets: Int64Array, job: Job) -> Spans:
    return Spans(np.zeros_like(offsets), offsets, np.full_like(offsets, job.piece_bytes))


# -- two processes


@contextmanager
def _pair(kind: str) -> Iterator[Pair]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(kind, theirs), daemon=True)
    process.start()
    try:
        with _side(kind, pipe, near=True) as (transport, description, move):
            ended = threading.Event()
            tells = transport.watch(ended.set)
            yield Pair(transport, transport.connect(description), move, pipe, ended, tells)
            pipe.send(())
    finally:
        pipe.close()
        process.join(_JOIN_SECONDS)
        process.kill()
        process.join()


def _serve(kind: str, pipe: Connection) -> None:
    """The far process: its side of ours and of the floor, until there are no more jobs."""
    with _side(kind, pipe, near=False) as (transport, _, move):
        while True:
            if transport.needs_progress and not pipe.poll(_TICK_SECONDS):
                transport.progress()
                continue
            jobs = pipe.recv()
            if not jobs:
                return
            for job in jobs:
                move(job)
            pipe.recv()  # the other side is done as well


def _aligned_memory() -> npt.NDArray[np.uint8]:
    """To pages, as that of engines is: it is what the kernel copies fastest."""
    memory = np.ones(_MEMORY_BYTES + mmap.PAGESIZE, np.uint8)
    return memory[-memory.ctypes.data % mmap.PAGESIZE :][:_MEMORY_BYTES]


@contextmanager
def _side(kind: str, pipe: Connection, near: bool) -> Iterator[tuple[Transport, bytes, Move]]:
    """A transport, the description of the other's, and the floor."""
    memory = _aligned_memory()

    def exchange(ours: object) -> Any:
        pipe.send(ours)
        return pipe.recv()

    transport = makers("127.0.0.1")[kind]()
    try:
        transport.register([Region(memory.ctypes.data, memory.nbytes)])
        description = exchange(transport.describe())
        with FLOORS[kind](Side(near, memory, exchange, pipe.poll)) as move:
            yield transport, description, move
    finally:
        transport.close()
