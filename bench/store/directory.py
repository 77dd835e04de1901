"""The directory at a million blocks: memory of a block, look-ups of 1,000-block prefixes, cost of reports.

And the router's index, a replica with a hundred workers: matches of prompts of 100,000 tokens.
"""

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
from llmserve.kvstore.directory.directory import BlockReport, Directory, Holder, KvTier
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.prefix.index import HashedPrompt, PrefixIndex

BLOCKS = 1_000_000
PREFIX_BLOCKS = 1000
LOOKUPS = 3000
WORKERS = 8
DEVICE_BLOCKS = 25_000
DRAM_BLOCKS = 100_000
CHANGE_BLOCKS = 1000
INDEX_WORKERS = 100
INDEX_DEVICE_BLOCKS = 20_000
MATCH_TOKENS = 100_000


def run() -> str:
    """In a process of its own: memory that others freed would hide what this takes."""
    with get_context("spawn").Pool(1) as pool:
        rows = pool.apply(_measure)
        rows += pool.apply(_measure_index)
    return markdown(["what", "figure"], rows)


def _measure_index() -> list[tuple[str, str]]:
    hashes = list(map(_hash, range(BLOCKS)))
    before = _resident_bytes()
    index = _filled_index(hashes)
    gc.collect()
    bytes_a_block = (_resident_bytes() - before) / BLOCKS
    rows = [
        (
            f"index: memory of a block, {INDEX_WORKERS} workers with {INDEX_DEVICE_BLOCKS:,} each, bytes",
            f"{bytes_a_block:.0f}",
        )
    ]
    for block_tokens in (128, 16):
        blocks = MATCH_TOKENS // block_tokens
        what = f"index: match of {MATCH_TOKENS:,} tokens in {blocks:,} blocks"
        rows.append((f"{what}, ms p50 / p99 / p99 of CPU time", _figures(_matches(index, hashes, blocks))))
    return rows


def _filled_index(hashes: list[BlockHash]) -> PrefixIndex:
    """As by a KV manager: NVMe holds all, DRAM a part, and each block is on the devices of two workers."""
    index = PrefixIndex()
    index.begin("kvmanager-0")
    holders = [(Holder("kvmanager-0/nvme", KvTier.NVME), range(BLOCKS))]
    holders.append((Holder("kvmanager-0/dram", KvTier.DRAM), range(DRAM_BLOCKS)))
    for worker in range(INDEX_WORKERS):
        start = worker * (BLOCKS - INDEX_DEVICE_BLOCKS) // INDEX_WORKERS
        holders.append((Holder(f"decode-{worker}"), range(start, start + INDEX_DEVICE_BLOCKS)))
    for holder, numbers in holders:
        stored = [BlockHash(bytes(bytearray(hashes[number]))) for number in numbers]
        assert index.apply("kvmanager-0", DirectoryUpdate(holder, 1, is_snapshot=True, stored=tuple(stored)))
    return index


def _matches(index: PrefixIndex, hashes: list[BlockHash], blocks: int) -> list[tuple[float, float]]:
    chooser = random.Random(blocks)
    times = []
    for _ in range(LOOKUPS // 3):
        start = chooser.randrange(BLOCKS - blocks)
        prompt = HashedPrompt(
            [BlockHash(bytes(bytearray(key))) for key in hashes[start : start + blocks]], 16
        )
        times.append(_timed(lambda _, prompt=prompt: index.match(prompt), []))  # type: ignore[misc]
    return times


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
    """They take turns; every prefix is another, so caches are cold. CPU time leaves out what the
    machine did for others in between."""
    ways: dict[str, Callable[[list[BlockHash]], object]] = {
        "prefix of 1,000 blocks by holder": directory.prefix_blocks,
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
