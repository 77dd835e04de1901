"""Reads of blobs: neighbours together, each run on a thread of its own."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from llmserve.kvstore.tiers.base import ReadResult, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme.blob_io import RUN_BYTES, BlobIO, Wanted, neighbours
from llmserve.kvstore.tiers.nvme.segments import Index, Place, Segment
from llmserve.kvstore.tiers.nvme.threads import run_all

_MISSING = ReadResult(TierOutcome.MISSING, "not there")


@dataclass(frozen=True, slots=True)
class _Run:
    """rows: which of the targets these are."""

    segment: Segment
    wanted: list[Wanted]
    rows: list[int]


class Reader:
    def __init__(self, index: Index, blob_io: BlobIO, threads: Executor) -> None:
        self._index = index
        self._io = blob_io
        self._threads = threads

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        """What is CORRUPT is still in the index."""
        results = [_MISSING] * len(targets)
        places: list[tuple[int, Place]] = []
        for row, target in enumerate(targets):
            if target.key in self._index:
                place = self._index[target.key]
                if place.length <= target.buffer.nbytes:
                    places.append((row, place))
                else:
                    results[row] = _too_short(place, target)
        runs = _runs(targets, places)
        for run, answers in zip(runs, await self._read_runs(runs), strict=True):
            for row, answer in zip(run.rows, answers, strict=True):
                results[row] = answer
        return results

    async def _read_runs(self, runs: Sequence[_Run]) -> list[list[ReadResult]]:
        for run in runs:
            run.segment.pin()
        try:
            return await run_all(self._threads, [partial(self._read_run, run) for run in runs])
        finally:
            for run in runs:
                run.segment.unpin()

    def _read_run(self, run: _Run) -> list[ReadResult]:
        """On a thread. A run that fails is tried again blob by blob: one bad spot is one miss."""
        try:
            return self._io.read(run.segment.file, run.segment.stamp, run.wanted)
        except OSError as error:
            if len(run.wanted) == 1:
                return [ReadResult(TierOutcome.FAILED, f"read failed: {error}")]
        return [self._read_run(_Run(run.segment, [one], []))[0] for one in run.wanted]


def _too_short(place: Place, target: ReadTarget) -> ReadResult:
    reason = f"{place.length} bytes do not fit a buffer of {target.buffer.nbytes}"
    return ReadResult(TierOutcome.FAILED, reason)


def _runs(targets: Sequence[ReadTarget], places: list[tuple[int, Place]]) -> list[_Run]:
    places.sort(key=lambda row: (row[1].segment.stamp, row[1].offset))
    runs: list[_Run] = []
    for _, group in groupby(places, key=lambda row: row[1].segment.stamp):
        rows = list(group)
        order = iter(row for row, _ in rows)
        wanted = [_wanted(targets[row], place) for row, place in rows]
        segment = rows[0][1].segment
        parts = neighbours(wanted, RUN_BYTES)
        runs.extend(_Run(segment, part, [next(order) for _ in part]) for part in parts)
    return runs


def _wanted(target: ReadTarget, place: Place) -> Wanted:
    return Wanted(target.key, place.offset, place.length, target.buffer)
