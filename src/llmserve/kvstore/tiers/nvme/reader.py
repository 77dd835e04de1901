"""Reads blobs: neighbours by one call, each call on a thread."""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from llmserve.core.aio import run_in_threads
from llmserve.kvstore.tiers.base import ReadResult, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme.heads import Place
from llmserve.kvstore.tiers.nvme.record_io import FileTooShort, RecordIO, neighbours
from llmserve.kvstore.tiers.nvme.space import Space

_MISSING = ReadResult(TierOutcome.MISSING, "not there")
_Wanted = Sequence[tuple[Place, memoryview]]


class Reader:
    def __init__(self, space: Space, record_io: RecordIO, threads: Executor) -> None:
        self._space, self._io, self._threads = space, record_io, threads

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        """Blobs that are CORRUPT are still in the index afterwards."""
        results = [_MISSING] * len(targets)
        rows: list[int] = []
        wanted: list[tuple[Place, memoryview]] = []
        for row, target in enumerate(targets):
            place = self._space.find(target.key)
            if place and place.length > target.buffer.nbytes:
                results[row] = _too_short(place, target)
            elif place:
                rows.append(row)
                wanted.append((place, target.buffer))
        for number, result in (await self._read_pinned(wanted)).items():
            results[rows[number]] = result
        return results

    async def _read_pinned(self, wanted: _Wanted) -> dict[int, ReadResult]:
        groups = neighbours([place for place, _ in wanted])
        for place, _ in wanted:
            self._space.pin(place)
        try:
            jobs = [partial(self._read_group, [wanted[number] for number in group]) for group in groups]
            answers = await run_in_threads(self._threads, jobs)
        finally:
            for place, _ in wanted:
                self._space.unpin(place)
        pairs = zip(groups, answers, strict=True)
        return {number: result for group, found in pairs for number, result in zip(group, found, strict=True)}

    def _read_group(self, wanted: _Wanted) -> list[ReadResult]:
        """On a thread. A group that fails is read again blob by blob: one bad spot is one miss."""
        try:
            return self._io.read(wanted)
        except OSError as error:
            if len(wanted) == 1:
                corrupt = isinstance(error, FileTooShort)
                outcome = TierOutcome.CORRUPT if corrupt else TierOutcome.FAILED
                return [ReadResult(outcome, str(error) if corrupt else f"read failed: {error}")]
        return [self._read_group([one])[0] for one in wanted]


def _too_short(place: Place, target: ReadTarget) -> ReadResult:
    reason = f"{place.length} bytes do not fit a buffer of {target.buffer.nbytes}"
    return ReadResult(TierOutcome.FAILED, reason)
