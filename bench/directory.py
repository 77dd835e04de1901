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
    prefix = _times(directory, lambda keys: directory.prefix_blocks(keys))
    runs = _times(directory, lambda keys: directory.runs(keys))
    floor = _times(directory, lambda keys: [directory._masks.get(key) for key in keys])
    change = _change_ms(directory)
    return [
        ("blocks, entries of holders", f"{len(directory):,}, {_entries(directory):,}"),
        ("memory of a block, with its hash and holders, bytes", f"{bytes_a_block:.0f}"),
        ("prefix of 1,000 blocks by holder, ms p50 / p99 / worst", _three(prefix)),
        ("prefix of 1,000 blocks as runs, ms p50 / p99 / worst", _three(runs)),
        ("floor: 1,000 bare dict look-ups, ms p50 / p99 / worst", _three(floor)),
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


def _times(directory: Directory, look_up: Callable[[list[BlockHash]], object]) -> list[float]:
    """Milliseconds, sorted; every prefix begins anew, so caches are cold."""
    chooser = random.Random(1)
    known = list(directory._masks)
    times = []
    for _ in range(LOOKUPS):
        start = chooser.randrange(BLOCKS // PREFIX_BLOCKS) * PREFIX_BLOCKS
        keys = [BlockHash(bytes(bytearray(key))) for key in known[start : start + PREFIX_BLOCKS]]
        began = time.perf_counter()
        look_up(keys)
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times)


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


def _three(ordered: list[float]) -> str:
    shares = (0.5, 0.99, 1.0)
    return " / ".join(f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.3f}" for share in shares)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
