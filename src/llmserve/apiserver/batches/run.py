"""One batch, from its claim to its end: check the file, run the lines that have no result, keep the results.

    validating -> in_progress -> finalizing -> completed
         |             |-> finalizing -> expired      the lines without a result get an error
         |             `-> cancelling -> cancelled    the lines without a result have none
         `-> failed                                   the file as a whole is wrong

It may be cancelled anywhere, and go on in another process from the journal.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum, auto

from openai.types import BatchError
from openai.types.batch import Errors

from llmserve.apiserver.batches.examine import examine
from llmserve.apiserver.batches.files import FileStore, NewFile
from llmserve.apiserver.batches.journal import Journal
from llmserve.apiserver.batches.lines import numbered_lines
from llmserve.apiserver.batches.sender import LineCaller, LineSender
from llmserve.apiserver.batches.slots import LineSlots
from llmserve.apiserver.batches.storage import Claim
from llmserve.apiserver.batches.store import BatchStore, StoredBatch
from llmserve.core.errors import NotFound, Overloaded, Unavailable
from llmserve.core.ids import TenantId
from llmserve.core.tasks import first_done
from llmserve.metrics.apiserver import BatchMetrics

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


class RunEnd(Enum):
    """Why a batch runs no more lines."""

    DONE = auto()
    CANCELLED = auto()
    EXPIRED = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class RunParts:
    """What all runs of an apiserver share. now: Unix time. look_seconds: how often a run looks whether it is
    cancelled, and saves its counts."""

    files: FileStore
    store: BatchStore
    caller: LineCaller
    slots: LineSlots
    metrics: BatchMetrics
    max_lines: int
    max_line_bytes: int
    now: Callable[[], float]
    look_seconds: float = _LOOK_SECONDS


class BatchRun:
    """stored: as its last owner left it; this one is its owner as long as it has the claim."""

    def __init__(self, parts: RunParts, stored: StoredBatch, journal: Journal, claim: Claim) -> None:
        self._parts, self._stored, self._journal, self._claim = parts, stored, journal, claim
        self._batch = stored.batch
        self._tenant = TenantId(stored.tenant)
        self._sender = LineSender(stored, self._texts, journal, parts.caller, parts.slots, parts.metrics)

    async def run(self) -> bool:
        """Returns whether the batch has ended; False when its claim was lost."""
        await self._journal.load()
        if self._batch.status == "validating" and not await self._validate():
            return True
        if self._batch.status == "in_progress":
            end = await self._run_lines()
            if end is RunEnd.LOST:
                return False
            await self._ended(end)
        await self._finalize()
        return True

    # -- the file as a whole

    async def _validate(self) -> bool:
        """Returns False when the batch has failed."""
        try:
            await self._parts.files.get(self._tenant, self._batch.input_file_id)
            errors = await self._examine()
        except NotFound as error:
            errors = [BatchError(code="file_not_found", message=error.message, param="input_file_id")]
        if errors:
            self._batch.errors = Errors(object="list", data=list(errors))
            await self._reach("failed")
            return False
        await self._reach("in_progress")
        return True

    async def _examine(self) -> Sequence[BatchError]:
        """Counts the lines. Returns why none of them can run; nothing when one can."""
        async with aclosing(self._texts()) as texts:
            file = await examine(texts, self._batch.endpoint, self._parts.max_lines)
        if not file.errors:
            self._batch.request_counts = self._journal.counts(file.lines)
            self._batch.model = file.model
        return file.errors

    def _texts(self) -> AsyncGenerator[tuple[int, bytes], None]:
        contents = self._parts.files.contents(self._batch.input_file_id)
        return numbered_lines(contents, self._parts.max_line_bytes)

    # -- its lines

    async def _run_lines(self) -> RunEnd:
        sending, watching = await first_done(self._batch.id, self._sender.send_all(), self._watch())
        if not watching.cancelled() and watching.result() is RunEnd.LOST:
            return RunEnd.LOST
        if sending.cancelled():
            end: RunEnd = watching.result()
            return end
        sending.result()
        return RunEnd.DONE

    async def _watch(self) -> RunEnd:
        """Saves the counts now and then. Returns when the batch is to run no more lines."""
        while not self._claim.lost.is_set():
            try:
                if await self._parts.store.cancelling_at(self._batch.id) is not None:
                    return RunEnd.CANCELLED
                await self._save_counts()
            except (Overloaded, Unavailable) as error:
                self._parts.metrics.storage_failures_total.inc()
                _log.warning("batch %s: its state cannot be kept: %s", self._batch.id, error.message)
            if self._is_over():
                return RunEnd.EXPIRED
            await asyncio.sleep(self._parts.look_seconds)
        return RunEnd.LOST

    async def _save_counts(self) -> None:
        total = self._batch.request_counts.total if self._batch.request_counts else 0
        counts = self._journal.counts(total)
        if counts != self._batch.request_counts:
            self._batch.request_counts = counts
            await self._parts.store.save(self._stored)

    def _is_over(self) -> bool:
        return self._batch.expires_at is not None and self._parts.now() >= self._batch.expires_at

    # -- its end

    async def _ended(self, end: RunEnd) -> None:
        """Notes why no more lines run, so that whoever goes on from here comes to the same end."""
        await self._journal.load()  # what was being written when the lines were given up
        match end:
            case RunEnd.CANCELLED:
                self._batch.cancelling_at = await self._parts.store.cancelling_at(self._batch.id)
                await self._reach("cancelling")
            case RunEnd.EXPIRED:
                self._batch.expired_at = int(self._parts.now())
                await self._parts.store.save(self._stored)
                await self._sender.expire_all()
            case _:
                total = self._batch.request_counts.total if self._batch.request_counts else 0
                if len(self._journal.done) < total:
                    message = "the input file was deleted before all of its lines had run"
                    error = BatchError(code="file_not_found", message=message, param="input_file_id")
                    self._batch.errors = Errors(object="list", data=[error])

    async def _finalize(self) -> None:
        """Keeps the results as files."""
        batch = self._batch
        if batch.status == "in_progress":
            await self._reach("finalizing")
        if batch.output_file_id is None:
            batch.output_file_id = await self._keep("output", success=True)
            await self._parts.store.save(self._stored)  # whoever goes on from here writes it no second time
        if batch.error_file_id is None:
            batch.error_file_id = await self._keep("error", success=False)
        batch.usage = self._journal.usage
        if batch.cancelling_at is not None:
            await self._reach("cancelled")
        elif batch.expired_at is not None:
            await self._reach("expired")
        else:
            await self._reach("failed" if batch.errors else "completed")

    async def _keep(self, what: str, *, success: bool) -> str | None:
        async def texts() -> AsyncIterator[bytes]:
            async with aclosing(self._journal.results()) as results:
                async for result in results:
                    if (result.answer is not None) is success:
                        yield result.text

        name = f"{self._batch.id}_{what}.jsonl"
        return await self._parts.files.keep(
            NewFile(self._tenant, name, "batch_output", self._stored.output_seconds), texts()
        )

    async def _reach(self, status: str) -> None:
        if self._batch.request_counts is not None:
            self._batch.request_counts = self._journal.counts(self._batch.request_counts.total)
        self._stored.reached(status, self._parts.now())
        await self._parts.store.save(self._stored)
        _log.info("batch %s of tenant %s is %s", self._batch.id, self._tenant, status)
