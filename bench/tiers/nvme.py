"""The NVMe tier beside fio at the same block size (a bare loop of preadv and pwritev where fio is missing),
and how long it takes to find its blobs again.

Both write new files with their room reserved, and read them once, in turns, on the disk of `directory`.
"""

import argparse
import asyncio
import json
import mmap
import os
import shutil
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.table import Figure, markdown
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier

_MIB = 1 << 20
_TURN_BYTES = 384 * _MIB
_BATCH_BYTES = 96 * _MIB  # a prefix of 34 blocks of 2.8 MiB
_DEPTH = 4
SIZES = {"100 KiB": 100 << 10, "2.8 MiB (30 layers)": 30 * (96 << 10), "16 MiB": 16 * _MIB}
_RECOVERED_BLOBS = 100_000

Rates = tuple[float, float]  # GB/s written and read


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", type=Path, default=Path(), help="a folder on the disk to measure")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")


def run(directory: Path, repeats: int) -> str:
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-nvme-") as work:
        speeds = _speeds(Path(work), repeats)
        return f"{speeds}\n\n{asyncio.run(_recovery(Path(work)))}"


def _speeds(work: Path, repeats: int) -> str:
    name, floor = ("fio", _fio) if shutil.which("fio") else ("bare loop of preadv and pwritev", _bare_loop)
    rows = [row for label, size in SIZES.items() for row in _rows(work, label, size, floor, repeats)]
    return markdown(("blob", "direction", "GB/s (range)", name, "ratio of medians", "ratio in turns"), rows)


def _rows(
    work: Path, label: str, size: int, floor: Callable[[Path, int], Rates], repeats: int
) -> Iterator[tuple[str, ...]]:
    turns = [(asyncio.run(_ours(work / "kv", size)), floor(work, size)) for _ in range(repeats)]
    for number, direction in enumerate(("write", "read")):
        ours = Figure.of([mine[number] for mine, _ in turns])
        bare = Figure.of([theirs[number] for _, theirs in turns])
        ratio = Figure.of([mine[number] / theirs[number] for mine, theirs in turns])
        yield label, direction, ours.text(2), bare.text(2), f"{ours.median / bare.median:.2f}", ratio.text(2)


# -- ours


async def _ours(directory: Path, size: int) -> Rates:
    tier = NvmeTier(NvmeSettings(directory, 16 << 30))
    await tier.open()
    try:
        return await _timed(tier, size)
    finally:
        await tier.aclose()
        shutil.rmtree(directory)


async def _timed(tier: NvmeTier, size: int) -> Rates:
    count, batch = _TURN_BYTES // size, max(1, _BATCH_BYTES // size)
    buffers = [_memory(size) for _ in range(batch)]
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]

    async def write(numbers: range) -> Sequence[BlobResult]:
        return await tier.write([Blob(_key(n), b"", buffers[n % batch]) for n in numbers])

    async def read(numbers: range) -> Sequence[BlobResult]:
        return await tier.read([ReadTarget(_key(n), buffers[n % batch]) for n in numbers])

    rates = []
    for operation in (write, read):
        started = time.perf_counter()
        for numbers in batches:
            results = await operation(numbers)
            assert all(result.outcome is TierOutcome.DONE for result in results), results
        rates.append(count * size / (time.perf_counter() - started) / 1e9)
    return rates[0], rates[1]


def _key(number: int) -> BlobKey:
    return BlobKey(b"%032d" % number)


def _memory(size: int) -> memoryview:
    memory = memoryview(mmap.mmap(-1, size))
    memory[:] = os.urandom(size)
    return memory


# -- what it stands on


def _fio(work: Path, size: int) -> Rates:
    try:
        return _fio_pass(work, size, "write"), _fio_pass(work, size, "read")
    finally:
        (work / "fio").unlink()


def _fio_pass(work: Path, size: int, operation: str) -> float:
    """GB/s of one pass over a file of its own."""
    options = {
        "name": "floor",
        "filename": str(work / "fio"),
        "rw": operation,
        "bs": size,
        "size": _TURN_BYTES // size * size,
        "direct": 1,
        "ioengine": "libaio",
        "iodepth": _DEPTH,
        "output-format": "json",
    }
    command = ["fio", *(f"--{name}={value}" for name, value in options.items())]
    answer = subprocess.run(command, check=True, capture_output=True).stdout
    return float(json.loads(answer)["jobs"][0][operation]["bw_bytes"]) / 1e9


def _bare_loop(work: Path, size: int) -> Rates:
    """One call for each block, on threads."""
    count, path = _TURN_BYTES // size, work / "bare"
    with _direct_file(path) as fd, ThreadPoolExecutor(_DEPTH) as threads:
        os.posix_fallocate(fd, 0, count * size)
        buffers = [_memory(size) for _ in range(_DEPTH * 2)]
        rates = []
        for call in (os.pwritev, os.preadv):

            def one(n: int, call: Callable[..., int] = call) -> int:
                return call(fd, [buffers[n % len(buffers)]], n * size)

            started = time.perf_counter()
            assert set(threads.map(one, range(count))) == {size}
            rates.append(count * size / (time.perf_counter() - started) / 1e9)
    return rates[0], rates[1]


@contextmanager
def _direct_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink()


# -- recovery


async def _recovery(work: Path) -> str:
    """Opens a tier of many small blobs; after a crash the same is read as after a close."""
    settings = NvmeSettings(work / "many", 4 << 30)
    await _write_many(settings)
    seconds, blobs = await _open_seconds(settings)
    each = await _index_bytes(settings) / blobs
    table = markdown(("blobs", "seconds to open"), [(blobs, f"{seconds:.2f}")])
    return f"{table}\n\nMemory of an open tier: {each:.0f} bytes a blob."


async def _write_many(settings: NvmeSettings) -> None:
    tier = NvmeTier(settings)
    await tier.open()
    data = _memory(mmap.PAGESIZE)
    for first in range(0, _RECOVERED_BLOBS, 5_000):
        await tier.write([Blob(_key(first + n), b"", data) for n in range(5_000)])
    await tier.aclose()


async def _open_seconds(settings: NvmeSettings) -> tuple[float, int]:
    tier = NvmeTier(settings)
    started = time.perf_counter()
    await tier.open()
    seconds = time.perf_counter() - started
    blobs = tier.usage().blobs
    await tier.aclose()
    return seconds, blobs


async def _index_bytes(settings: NvmeSettings) -> int:
    """What an open tier holds of Python's memory."""
    tier = NvmeTier(settings)
    tracemalloc.start()
    await tier.open()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await tier.aclose()
    return held
