"""One batch, from its claim to its end: check the file, run the lines that have no result, keep the results.

    validating -> in_progress -> finalizing -> completed
         |             |-> finalizing -> expired      the lines without a result get an error
         |             `-> cancelling -> cancelled    the lines without a result have none
         `-> failed                                   the file as a whole is wrong

It may be cancelled anywhere, and go on in another process from the journal.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Protocol

from openai.types import BatchError
from openai.types.batch import Errors

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.batches.call import LineAnswer
from llmserve.apiserver.batches.files import FileStore, NewFile
from llmserve.apiserver.batches.journal import Journal
from llmserve.apiserver.batches.lines import (
    BatchLine,
    LineProblem,
    LineReader,
    answered,
    expired,
    not_answered,
    numbered_lines,
    request_name,
)
from llmserve.apiserver.batches.slots import LineSlots
from llmserve.apiserver.batches.storage import Claim
from llmserve.apiserver.batches.store import BatchStore, StoredBatch
from llmserve.core.errors import NotFound, Overloaded, Unavailable
from llmserve.core.ids import TenantId
from llmserve.core.tasks import first_done
from llmserve.metrics.apiserver import BatchMetrics
from llmserve.rpc.client import Backoff

_log = logging.getLogger(__name__)
# What these say is about the cluster, and not about the line: it is sent again until the batch's window ends.
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_DEFECT = b'{"error": {"message": "the request failed on a defect", "type": "InternalServerError"}}'
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
# Problems of a file that fails as a whole are told up to this number.
_MOST_PROBLEMS = 20
_LOOK_SECONDS = 1.0


class LineCaller(Protocol):
    """Runs the requests of lines. Implementation: GateCaller."""

    async def post(self, caller: Caller, path: str, request_id: str, body: bytes) -> LineAnswer:
        """Returns the whole answer. request_id: `explain` finds the request by it."""


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
        self._running: set[asyncio.Task[None]] = set()

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
            self._batch.errors = Errors(object="list", data=errors)
            await self._reach("failed")
            return False
        await self._reach("in_progress")
        return True

    async def _examine(self) -> list[BatchError]:
        """Counts the lines. Returns why none of them can run; nothing when one can."""
        reader, total, good, problems = LineReader(self._batch.endpoint), 0, 0, list[LineProblem]()
        models: set[str] = set()
        async with aclosing(self._texts()) as texts:
            async for number, text in texts:
                total += 1
                line = reader.read(number, text)
                if isinstance(line, BatchLine):
                    good += 1
                    models.add(line.model)
                elif len(problems) < _MOST_PROBLEMS:
                    problems.append(line)
                if total > self._parts.max_lines:
                    message = f"the file has more than {self._parts.max_lines} lines (batches.max_lines)"
                    return [BatchError(code="too_many_requests", message=message)]
        if not total:
            return [BatchError(code="empty_file", message="the file has no lines")]
        if not good:
            return [BatchError(code=one.code, message=one.message, line=one.number) for one in problems]
        self._batch.request_counts = self._journal.counts(total)
        self._batch.model = models.pop() if len(models) == 1 else None
        return []

    def _texts(self) -> AsyncGenerator[tuple[int, bytes], None]:
        contents = self._parts.files.contents(self._batch.input_file_id)
        return numbered_lines(contents, self._parts.max_line_bytes)

    # -- its lines

    async def _run_lines(self) -> RunEnd:
        try:
            sending, watching = await first_done(self._batch.id, self._send_all(), self._watch())
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        if not watching.cancelled() and watching.result() is RunEnd.LOST:
            return RunEnd.LOST
        if sending.cancelled():
            end: RunEnd = watching.result()
            return end
        sending.result()
        return RunEnd.DONE

    async def _send_all(self) -> None:
        """Sends the lines that have no result. Returns when all have one. With those that pause, no more are
        in memory than there are slots."""
        async with aclosing(self._unfinished()) as lines:
            async for line in lines:
                if isinstance(line, LineProblem):
                    await self._refuse(line)
                    continue
                while len(self._running) >= self._parts.slots.count:
                    await asyncio.wait(set(self._running), return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._send(line), name=request_name(self._batch.id, line.number))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        while self._running:
            await asyncio.wait(set(self._running))

    async def _unfinished(self) -> AsyncGenerator[BatchLine | LineProblem, None]:
        reader = LineReader(self._batch.endpoint)
        async with aclosing(self._texts()) as texts:
            async for number, text in texts:
                line = reader.read(number, text)
                if number not in self._journal.done:
                    yield line

    async def _refuse(self, problem: LineProblem) -> None:
        await self._journal.write(not_answered(self._batch.id, problem))
        self._count("refused")

    async def _send(self, line: BatchLine) -> None:
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while True:
            await self._parts.slots.take(self._tenant)
            try:
                answer = await self._answer(line)
                if answer.status not in _BUSY:
                    await self._note(line, answer)
                    return
            finally:
                self._parts.slots.give_back(self._tenant)
            # It pauses without its slot: the lines of a tenant at its rate limit would hold all of them.
            await asyncio.sleep(answer.retry_after_seconds or backoff.next())

    async def _note(self, line: BatchLine, answer: LineAnswer) -> None:
        result = answered(self._batch.id, line, answer.status, answer.body)
        await self._journal.write(result)
        self._count("failed" if result.answer is None else "completed")

    async def _answer(self, line: BatchLine) -> LineAnswer:
        name, caller = request_name(self._batch.id, line.number), self._stored.caller
        try:
            return await self._parts.caller.post(caller, self._batch.endpoint, name, line.body)
        except Exception as error:  # whatever it is, it must not take the other lines along
            _log.error("%s failed on a defect", name, exc_info=error)
            return LineAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, _DEFECT)

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
        match end:
            case RunEnd.CANCELLED:
                self._batch.cancelling_at = await self._parts.store.cancelling_at(self._batch.id)
                await self._reach("cancelling")
            case RunEnd.EXPIRED:
                self._batch.expired_at = int(self._parts.now())
                await self._parts.store.save(self._stored)
                await self._expire_lines()
            case _:
                total = self._batch.request_counts.total if self._batch.request_counts else 0
                if len(self._journal.done) < total:
                    message = "the input file was deleted before all of its lines had run"
                    error = BatchError(code="file_not_found", message=message, param="input_file_id")
                    self._batch.errors = Errors(object="list", data=[error])

    async def _expire_lines(self) -> None:
        async with aclosing(self._unfinished()) as lines:
            async for line in lines:
                if isinstance(line, BatchLine):
                    await self._journal.write(expired(self._batch.id, line))
                    self._count("expired")
                else:
                    await self._refuse(line)

    async def _finalize(self) -> None:
        """Keeps the results as files."""
        batch = self._batch
        if batch.status == "in_progress":
            await self._reach("finalizing")
        if batch.output_file_id is None:
            batch.output_file_id = await self._keep("output", success=True)
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

    def _count(self, result: str) -> None:
        self._parts.metrics.lines_total.labels(result).inc()
