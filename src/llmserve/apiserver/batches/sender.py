"""Sends the lines of one batch that have no result, and writes what becomes of each into the journal."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Protocol

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.batches.call import LineAnswer
from llmserve.apiserver.batches.journal import Journal
from llmserve.apiserver.batches.lines import (
    BatchLine,
    LineProblem,
    LineReader,
    answered,
    expired,
    not_answered,
    request_name,
)
from llmserve.apiserver.batches.slots import LineSlots
from llmserve.apiserver.batches.store import StoredBatch
from llmserve.core.ids import TenantId
from llmserve.metrics.apiserver import BatchMetrics
from llmserve.rpc.client import Backoff

_log = logging.getLogger(__name__)
# What these say is about the cluster, and not about the line: it is sent again until the batch's window ends.
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_DEFECT = b'{"error": {"message": "the request failed on a defect", "type": "InternalServerError"}}'
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0

# Reads the numbered lines of the batch's input file, from the first one on.
ReadTexts = Callable[[], AsyncGenerator[tuple[int, bytes], None]]


class LineCaller(Protocol):
    """Runs the requests of lines. Implementation: GateCaller."""

    async def post(self, caller: Caller, path: str, request_id: str, body: bytes) -> LineAnswer:
        """Returns the whole answer. request_id: `explain` finds the request by it."""


class LineSender:
    """slots: those of all batches of the apiserver."""

    def __init__(
        self,
        stored: StoredBatch,
        texts: ReadTexts,
        journal: Journal,
        caller: LineCaller,
        slots: LineSlots,
        metrics: BatchMetrics,
    ) -> None:
        self._batch, self._caller_of_batch = stored.batch, stored.caller
        self._tenant = TenantId(stored.tenant)
        self._texts, self._journal = texts, journal
        self._line_caller, self._slots, self._metrics = caller, slots, metrics
        self._running: set[asyncio.Task[None]] = set()
        self._defect: BaseException | None = None

    async def send_all(self) -> None:
        """Returns when all lines have a result. With those that pause, no more are in memory than there are
        slots. When it is cancelled, it gives up the lines that run. Errors: what a line has failed on without
        a result."""
        try:
            await self._send_unfinished()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def expire_all(self) -> None:
        """Writes an error for each line without a result: it runs no more."""
        async with aclosing(self._unfinished()) as lines:
            async for line in lines:
                if isinstance(line, BatchLine):
                    await self._journal.write(expired(self._batch.id, line))
                    self._count("expired")
                else:
                    await self._refuse(line)

    async def _send_unfinished(self) -> None:
        async with aclosing(self._unfinished()) as lines:
            async for line in lines:
                if isinstance(line, LineProblem):
                    await self._refuse(line)
                    continue
                while len(self._running) >= self._slots.count:
                    await asyncio.wait(set(self._running), return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._send(line), name=request_name(self._batch.id, line.number))
                self._running.add(task)
                task.add_done_callback(self._ended)
        while self._running:
            await asyncio.wait(set(self._running))
        if self._defect is not None:
            raise self._defect

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._defect = self._defect or task.exception()

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
            await self._slots.take(self._tenant)
            try:
                answer = await self._answer(line)
                if answer.status not in _BUSY:
                    await self._note(line, answer)
                    return
            finally:
                self._slots.give_back(self._tenant)
            # It pauses without its slot: the lines of a tenant at its rate limit would hold all of them.
            await asyncio.sleep(answer.retry_after_seconds or backoff.next())

    async def _answer(self, line: BatchLine) -> LineAnswer:
        name = request_name(self._batch.id, line.number)
        try:
            return await self._line_caller.post(self._caller_of_batch, self._batch.endpoint, name, line.body)
        except Exception as error:  # whatever it is, it must not take the other lines along
            _log.error("%s failed on a defect", name, exc_info=error)
            return LineAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, _DEFECT)

    async def _note(self, line: BatchLine, answer: LineAnswer) -> None:
        result = answered(self._batch.id, line, answer.status, answer.body)
        await self._journal.write(result)
        self._count("failed" if result.answer is None else "completed")

    def _count(self, result: str) -> None:
        self._metrics.lines_total.labels(result).inc()
