"""The journal of a batch: one entry for each line whose result is known, written before it counts.

Results that come while others are being written go into the next append together.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from openai.types import BatchRequestCounts, BatchUsage
from openai.types.batch_usage import InputTokensDetails, OutputTokensDetails

from llmserve.apiserver.batches.lines import LineResult, numbered_lines, parse_result
from llmserve.apiserver.batches.names import journal_path
from llmserve.apiserver.batches.storage import PIECE_BYTES, BatchStorage
from llmserve.core.errors import Overloaded, Unavailable
from llmserve.metrics.apiserver import BatchMetrics
from llmserve.rpc.client import Backoff

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


class Journal:
    """done: numbers of the lines whose results are in it. usage: tokens of the successful ones."""

    def __init__(self, storage: BatchStorage, batch_id: str, metrics: BatchMetrics) -> None:
        self.done: set[int] = set()
        self.completed = self.failed = 0
        self.usage = _no_usage()
        self._storage, self._path, self._metrics = storage, journal_path(batch_id), metrics
        self._waiting: dict[int, LineResult] = {}
        self._writing = asyncio.Lock()
        self._lead = b""  # ends what a process that died has left half

    async def load(self) -> None:
        """Counts what is there, and was not counted yet. Errors: those of the storage."""
        async for result in self.results():
            self._count(result)
        self._lead = b"\n"

    async def results(self) -> AsyncGenerator[LineResult, None]:
        """Yields the results so far, each line's once."""
        seen: set[int] = set()
        async with aclosing(self._storage.read(self._path)) as pieces:
            async for _, text in numbered_lines(pieces):
                result = parse_result(text)
                if result is not None and result.number not in seen:
                    seen.add(result.number)
                    yield result

    async def write(self, result: LineResult) -> None:
        """Returns when the result is durable. While there is no room, it is tried again and again."""
        self._waiting[result.number] = result
        async with self._writing:
            if result.number not in self._waiting:
                return  # the one before took it along
            taken = self._take()
            try:
                await self._append(self._lead + b"".join(one.text for one in taken))
            except BaseException:
                self._waiting |= {one.number: one for one in taken}
                raise
            self._lead = b""
            for one in taken:
                self._count(one)

    def counts(self, total: int) -> BatchRequestCounts:
        return BatchRequestCounts(total=total, completed=self.completed, failed=self.failed)

    # -- parts

    def _take(self) -> list[LineResult]:
        """Takes what waits, up to the size of one append, and at least one result."""
        taken, size = list[LineResult](), 0
        for result in list(self._waiting.values()):
            size += len(result.text)
            if taken and size > PIECE_BYTES:
                break
            taken.append(self._waiting.pop(result.number))
        return taken

    async def _append(self, data: bytes) -> None:
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while True:
            try:
                return await self._storage.append(self._path, data)
            except (Overloaded, Unavailable) as error:
                self._metrics.storage_failures_total.inc()
                _log.warning("%s: results cannot be kept, and wait: %s", self._path, error.message)
                await asyncio.sleep(backoff.next())

    def _count(self, result: LineResult) -> None:
        if result.number in self.done:
            return
        self.done.add(result.number)
        if result.answer is None:
            self.failed += 1
        else:
            self.completed += 1
            _add(self.usage, result.answer.get("usage") or {})


def _no_usage() -> BatchUsage:
    return BatchUsage(
        input_tokens=0,
        input_tokens_details=InputTokensDetails(cached_tokens=0),
        output_tokens=0,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=0,
    )


def _add(usage: BatchUsage, one: dict[str, Any]) -> None:
    """one: the usage of an answer, with the names of the completions' API or of the responses' API."""
    inputs = one.get("input_tokens_details") or one.get("prompt_tokens_details") or {}
    outputs = one.get("output_tokens_details") or one.get("completion_tokens_details") or {}
    usage.input_tokens += one.get("input_tokens", one.get("prompt_tokens")) or 0
    usage.output_tokens += one.get("output_tokens", one.get("completion_tokens")) or 0
    usage.total_tokens += one.get("total_tokens") or 0
    usage.input_tokens_details.cached_tokens += inputs.get("cached_tokens") or 0
    usage.output_tokens_details.reasoning_tokens += outputs.get("reasoning_tokens") or 0
