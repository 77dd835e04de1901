"""Requests to a bucket: bounded in number, retried until a deadline, refused while it is away.

The only place that calls obstore. Its own retries are off: they would hide what they do, and know no
deadline of ours. Every error is a RequestFailed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import obstore
from obstore.store import ObjectStore

from llmserve.core.clock import Clock, SystemClock
from llmserve.kvstore.tiers.object.counters import Counters, Operation
from llmserve.kvstore.tiers.object.gate import Gate
from llmserve.kvstore.tiers.object.retry import Attempt, retried
from llmserve.kvstore.tiers.object.settings import Limits, Patience
from llmserve.kvstore.tiers.object.trouble import PASSING, RequestFailed, Trouble

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    path: str
    size_bytes: int


class Bucket:
    """store: one of obstore's, without retries of its own."""

    def __init__(
        self, store: ObjectStore, limits: Limits, counters: Counters, clock: Clock | None = None
    ) -> None:
        self._store, self._limits, self._counters = store, limits, counters
        self._gate = Gate(clock or SystemClock())
        self._reads = asyncio.Semaphore(limits.reads_in_flight)
        self._writes = asyncio.Semaphore(limits.uploads_in_flight)

    async def get(self, path: str, start: int, end: int) -> memoryview:
        """Bytes start to end of an object, exactly so many."""

        async def attempt() -> memoryview:
            data = memoryview(await obstore.get_range_async(self._store, path, start=start, end=end))
            if len(data) != end - start:
                raise RequestFailed(Trouble.REFUSED, f"{len(data)} bytes came of {end - start}")
            return data

        async with self._reads, self._passage(Operation.GET):
            return await self._tried(Operation.GET, self._limits.read, attempt)

    async def list(self) -> Sequence[Listed]:
        async def attempt() -> list[Listed]:
            stream = self._store.list()
            return [Listed(meta["path"], meta["size"]) async for chunk in stream for meta in chunk]

        async with self._reads, self._passage(Operation.LIST):
            return await self._tried(Operation.LIST, self._limits.write, attempt)

    async def put(self, path: str, body: memoryview) -> None:
        """All of it or nothing. An attempt whose answer got lost is repeated with the same contents."""

        async def attempt() -> None:
            await obstore.put_async(self._store, path, body, use_multipart=False)

        async with self._writes, self._passage(Operation.PUT):
            await self._tried(Operation.PUT, self._limits.write, attempt)

    async def delete(self, path: str) -> None:
        """What is not there is deleted."""

        async def attempt() -> None:
            try:
                await obstore.delete_async(self._store, [path])
            except FileNotFoundError:
                return

        async with self._writes, self._passage(Operation.DELETE):
            await self._tried(Operation.DELETE, self._limits.write, attempt)

    # -- retries and the gate

    async def _tried(self, operation: Operation, patience: Patience, attempt: Attempt[_T]) -> _T:
        def retrying(trouble: Trouble) -> None:
            self._counters.retries[operation, trouble] += 1

        return await retried(attempt, patience, retrying)

    @asynccontextmanager
    async def _passage(self, operation: Operation) -> AsyncIterator[None]:
        """Through the gate, and what is learnt on the way."""
        if not self._gate.enter():
            self._counters.troubles[operation, Trouble.CLOSED_GATE] += 1
            raise RequestFailed(Trouble.CLOSED_GATE, f"the bucket is away: {self._gate.reason}")
        try:
            yield
        except RequestFailed as failed:
            self._learn(operation, failed)
            raise
        except BaseException:
            self._gate.left()
            raise
        self._counters.requests[operation] += 1
        self._gate.passed()

    def _learn(self, operation: Operation, failed: RequestFailed) -> None:
        self._counters.troubles[operation, failed.trouble] += 1
        if failed.trouble not in PASSING:
            self._gate.passed()  # it is there: it answered
        elif self._gate.failed(failed.message):
            _log.warning("object tier: the bucket is away: %s failed: %s", operation, failed.message)
