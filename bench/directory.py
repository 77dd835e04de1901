"""The directory at a million blocks: memory of a block, look-ups of 1,000-block prefixes, cost of reports."""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from bench.table import markdown
from llmserve.core.ids import BlockHash
from llmserve.kvstore.directory import BlockReport, Directory, Holder, KvTier

BLOCKS = 1_000_000
PREFIX_BLOCKS = 1000
LOOKUPS = 3000
WORKERS = 8
DEVICE_BLOCKS = 25_000
DRAM_BLOCKS = 100_000
CHANGE_BLOCKS = 1000


def run() -> str:
    """In a process of its own: memory that others freed would hide what this takes."""
    with get_context("spawn").Pool(1) as pool:
        rows = pool.apply(_measure)
    return markdown(["what", "figure"], rows)


def _measure() -> list[tuple[str, str]]:
    gc.collect()
    before = _resident_bytes()
    directory = _filled()
    gc.collect()
    bytes_a_block = (_resident_bytes() - before) / BLOCKS
    times = _look_ups(directory)
    change = _change_ms(directory)
    return [
        ("blocks, entries of holders", f"{len(directory):,}, {_entries(directory):,}"),
        ("memory of a block, with its hash and holders, bytes", f"{bytes_a_block:.0f}"),
        *((f"{what}, ms p50 / p99 / p99 of CPU time", figures) for what, figures in times.items()),
        ("report of 1,000 stored and 1,000 removed, ms median", f"{change:.2f}"),
        ("snapshot of NVMe (1,000,000 blocks) that changes nothing, ms", f"{_snapshot_ms(directory):.0f}"),
    ]


def _filled() -> Directory:
    """NVMe holds all, DRAM a part of it, the workers' devices parts of that; in prefixes."""
    directory = Directory()
    _report(directory, Holder("kvmanager-0", KvTier.NVME), range(BLOCKS))
    _report(directory, Holder("kvmanager-0", KvTier.DRAM), range(DRAM_BLOCKS))
    for worker in range(WORKERS):
        start = worker * (DRAM_BLOCKS - DEVICE_BLOCKS) // WORKERS
        start -= start % PREFIX_BLOCKS
        _report(directory, Holder(f"decode-{worker}"), range(start, start + DEVICE_BLOCKS))
    return directory


def _report(directory: Directory, holder: Holder, numbers: range) -> None:
    directory.apply(BlockReport(holder, 1, 1, snapshot=True, stored=[_hash(number) for number in numbers]))


def _hash(number: int) -> BlockHash:
    """32 bytes that look like a digest."""
    return BlockHash(random.Random(number).randbytes(32))


def _look_ups(directory: Directory) -> dict[str, str]:
    """The three take turns; every prefix is another, so caches are cold. CPU time leaves out what the
    machine did for others in between."""
    ways: dict[str, Callable[[list[BlockHash]], object]] = {
        "prefix of 1,000 blocks by holder": directory.prefix_blocks,
        "prefix of 1,000 blocks as runs": directory.runs,
        "floor: 1,000 bare dict look-ups": lambda keys: [directory._masks.get(key) for key in keys],
    }
    chooser, known = random.Random(1), list(directory._masks)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(LOOKUPS):
        for way, look_up in ways.items():
            start = chooser.randrange(BLOCKS // PREFIX_BLOCKS) * PREFIX_BLOCKS
            keys = [BlockHash(bytes(bytearray(key))) for key in known[start : start + PREFIX_BLOCKS]]
            times[way].append(_timed(look_up, keys))
    return {way: _figures(each) for way, each in times.items()}


def _timed(look_up: Callable[[list[BlockHash]], object], keys: list[BlockHash]) -> tuple[float, float]:
    """Milliseconds by the clock, and of CPU."""
    clock, cpu = time.perf_counter(), time.thread_time()
    look_up(keys)
    return 1000 * (time.perf_counter() - clock), 1000 * (time.thread_time() - cpu)


def _figures(times: list[tuple[float, float]]) -> str:
    clock, cpu = (sorted(each) for each in zip(*times, strict=True))
    return f"{statistics.median(clock):.2f} / {_p99(clock):.2f} / {_p99(cpu):.2f}"


def _p99(ordered: list[float]) -> float:
    return ordered[int(0.99 * len(ordered))]


def _change_ms(directory: Directory) -> float:
    holder, times = Holder("kvmanager-0", KvTier.NVME), []
    for sequence in range(2, 52):
        first = (sequence - 2) * CHANGE_BLOCKS
        removed = [_hash(number) for number in range(first, first + CHANGE_BLOCKS)]
        stored = [_hash(BLOCKS + number) for number in range(first, first + CHANGE_BLOCKS)]
        began = time.perf_counter()
        directory.apply(BlockReport(holder, 1, sequence, removed=removed, stored=stored))
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def _snapshot_ms(directory: Directory) -> float:
    (snapshot,) = (each for each in directory.snapshots() if each.holder.tier is KvTier.NVME)
    began = time.perf_counter()
    directory.apply(snapshot)
    return 1000 * (time.perf_counter() - began)


def _entries(directory: Directory) -> int:
    return sum(len(snapshot.stored) for snapshot in directory.snapshots())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
