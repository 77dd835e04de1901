"""The object tier against bare obstore: the same bytes, from the same server on loopback, in turns.

bare: obstore with the ranges that the tier would ask for, as many at once, into memory that is thrown away.
The tier also copies into the caller's buffers and checks every blob. The server has the machine's other
core, so what it can do is the bound of both.
"""

import argparse
import asyncio
import os
import resource
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import obstore
import uvloop
from obstore.store import ObjectStore

from bench.table import Figure, markdown
from llmserve.buckets.connect import connect
from llmserve.kvstore.tiers.base import Blob, BlobKey, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.object import ObjectSettings, ObjectTier
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.layout import PackEntry
from llmserve.kvstore.tiers.object.records import Extent, plan_ranges
from tests.support.seaweed import BUCKET, Seaweed, credentials

TOTAL_BYTES = 96 << 20
BLOB_KIB = (352, 1440, 2880)  # int8 with zstd, fp8, raw bf16 of the small model's block
CATALOG_BLOBS = 200_000

_Wanted = tuple[str, int, int]
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    cpu_seconds: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="rounds")


def run(repeats: int) -> str:
    os.environ.update(credentials())
    with tempfile.TemporaryDirectory() as directory:
        server = Seaweed(Path(directory))
        server.start()
        try:
            rows = [row for kib in BLOB_KIB for row in uvloop.run(_rows(server, kib << 10, repeats))]
        finally:
            server.kill()
    headings = ("blob KiB", "what", "tier GB/s", "bare GB/s", "ratio", "tier CPU s/GB", "bare CPU s/GB")
    return markdown(headings, rows) + f"\n\nCatalog: {_catalog_bytes():.0f} bytes a blob, keys of 32 bytes."


async def _rows(server: Seaweed, size: int, repeats: int) -> list[tuple[object, ...]]:
    settings = ObjectSettings(
        f"s3://{BUCKET}/{uuid.uuid4().hex}", "one", 64 << 30, endpoint=server.endpoint, linger_seconds=0.01
    )
    store = connect(settings.address)
    tier = ObjectTier(settings, lambda: store)
    await tier.open()
    data = np.random.default_rng(1).integers(0, 256, (TOTAL_BYTES // size, size), np.uint8)
    every = np.arange(len(data))
    some = np.sort(np.random.default_rng(2).permutation(len(data))[: len(data) // 4])
    try:
        written = [await _write_pair(tier, store, settings, data, turn) for turn in range(repeats)]
        rows = [_row(size, "write", data.nbytes, written)]
        for what, which in (("read all", every), ("read a quarter, scattered", some)):
            pairs = await _read_pairs(tier, store, settings, which, size, repeats)
            rows.append(_row(size, what, len(which) * size, pairs))
        return rows
    finally:
        await tier.aclose()


async def _write_pair(
    tier: ObjectTier, store: ObjectStore, settings: ObjectSettings, data: _Bytes, turn: int
) -> tuple[Run, Run]:
    blobs = [Blob(_key(turn, number), b"h" * 64, one.data) for number, one in enumerate(data)]
    flat = data.reshape(-1).data
    packs = [flat[at : at + settings.pack_bytes] for at in range(0, len(flat), settings.pack_bytes)]

    async def by_tier() -> None:
        results = await tier.write(blobs)
        assert {result.outcome for result in results} == {TierOutcome.DONE}, results[0]

    async def put(number: int, pack: memoryview) -> None:
        await obstore.put_async(store, f"bare/{turn}-{number}", pack, use_multipart=False)

    async def bare() -> None:
        await asyncio.gather(*(put(number, pack) for number, pack in enumerate(packs)))

    return await _timed(by_tier), await _timed(bare)


async def _read_pairs(
    tier: ObjectTier,
    store: ObjectStore,
    settings: ObjectSettings,
    which: npt.NDArray[np.int64],
    size: int,
    repeats: int,
) -> list[tuple[Run, Run]]:
    buffers = np.zeros((len(which), size), np.uint8)
    targets = [ReadTarget(_key(0, int(n)), to.data) for n, to in zip(which, buffers, strict=True)]
    wanted = _ranges(tier, settings, [target.key for target in targets])
    together = asyncio.Semaphore(settings.limits.reads_in_flight)

    async def by_tier() -> None:
        results = await tier.read(targets)
        assert {result.outcome for result in results} == {TierOutcome.DONE}, results[0]

    async def one(path: str, start: int, end: int) -> None:
        async with together:
            await obstore.get_range_async(store, path, start=start, end=end)

    async def bare() -> None:
        await asyncio.gather(*(one(*range_) for range_ in wanted))

    await by_tier()  # memory is touched, connections are there
    return [(await _timed(by_tier), await _timed(bare)) for _ in range(repeats)]


def _ranges(tier: ObjectTier, settings: ObjectSettings, keys: Sequence[BlobKey]) -> list[_Wanted]:
    extents: dict[str, list[Extent]] = {}
    for number, key in enumerate(keys):
        place = tier.catalog.find(key)
        assert place is not None
        path, entry = place.pack.path, place.entry
        extents.setdefault(path, []).append(Extent(number, entry.offset, entry.length_bytes))
    return [
        (path, range_.start, range_.end)
        for path, mine in extents.items()
        for range_ in plan_ranges(mine, settings.range_bytes, settings.gap_bytes)
    ]


async def _timed(work: Callable[[], Awaitable[None]]) -> Run:
    began, cpu = time.perf_counter(), _cpu()
    await work()
    return Run(time.perf_counter() - began, _cpu() - cpu)


def _row(size: int, what: str, moved: int, runs: list[tuple[Run, Run]]) -> tuple[object, ...]:
    gb = moved / 1e9
    speeds = [Figure.of([gb / pair[side].seconds for pair in runs]).text(2) for side in (0, 1)]
    ratio = Figure.of([bare.seconds / tier.seconds for tier, bare in runs]).text(2)
    cpu = [f"{Figure.of([pair[side].cpu_seconds / gb for pair in runs]).median:.2f}" for side in (0, 1)]
    return (size >> 10, what, *speeds, ratio, *cpu)


def _key(turn: int, number: int) -> BlobKey:
    return BlobKey(b"%016d%016d" % (turn, number))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _catalog_bytes() -> float:
    """Memory of a catalog, by blob; packs of 45 blobs, as 64 MiB of 1.4 MiB are."""
    tracemalloc.start()
    catalog = Catalog()
    for first in range(0, CATALOG_BLOBS, 45):
        entries = [PackEntry(_key(0, n), n << 21, 64, 1440 << 10, n << 40) for n in range(first, first + 45)]
        catalog.add(Pack(f"one/{first:016x}-00000000.pack", 64 << 20, entries, mine=True))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used / CATALOG_BLOBS
