"""Requests to a bucket: bounded in number, retried until a deadline, refused while the bucket is away.

Only this module sends requests through obstore. Retries of obstore are off, since they hide what they do and
ignore our deadlines. Every error is a RequestFailed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias, TypeVar

import obstore
from obstore.store import ObjectStore

from llmserve.buckets.failures import TRANSIENT, FailureKind, RequestFailed, failure_of
from llmserve.core.clock import Clock, SystemClock
from llmserve.kvstore.tiers.object.settings import RequestLimits, RetryPolicy
from llmserve.rpc.client import Backoff
from llmserve.transfer.engine.choice import Breaker, BreakerState

_T = TypeVar("_T")
Attempt: TypeAlias = Callable[[], Awaitable[_T]]
_log = logging.getLogger(__name__)


class BucketOperation(StrEnum):
    GET = "get"
    PUT = "put"
    LIST = "list"
    DELETE = "delete"


@dataclass(slots=True)
class BucketCounters:
    """failures: requests that failed after their retries. retries: attempts that failed and were repeated."""

    failures: Counter[tuple[BucketOperation, FailureKind]] = field(default_factory=Counter)
    retries: Counter[tuple[BucketOperation, FailureKind]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ListedObject:
    path: str
    size_bytes: int


class Bucket:
    """store: a client of obstore without retries of its own."""

    def __init__(
        self, store: ObjectStore, limits: RequestLimits, counters: BucketCounters, clock: Clock | None = None
    ) -> None:
        self._store, self._limits, self._counters = store, limits, counters
        self._gate = BucketGate(clock or SystemClock())
        self._reads = asyncio.Semaphore(limits.reads_in_flight)
        self._writes = asyncio.Semaphore(limits.uploads_in_flight)

    async def get(self, path: str, start: int, end: int) -> memoryview:
        """Returns the bytes from start to end of an object, exactly so many."""

        async def attempt() -> memoryview:
            data = memoryview(await obstore.get_range_async(self._store, path, start=start, end=end))
            if len(data) != end - start:
                raise RequestFailed(FailureKind.REFUSED, f"{len(data)} bytes came of {end - start}")
            return data

        async with self._reads, self._gated(BucketOperation.GET):
            return await self._retried(BucketOperation.GET, self._limits.read, attempt)

    async def list(self) -> Sequence[ListedObject]:
        async def attempt() -> list[ListedObject]:
            stream = self._store.list()
            return [ListedObject(meta["path"], meta["size"]) async for chunk in stream for meta in chunk]

        async with self._reads, self._gated(BucketOperation.LIST):
            return await self._retried(BucketOperation.LIST, self._limits.write, attempt)

    async def put(self, path: str, body: memoryview) -> None:
        """Stores the whole object or nothing. An attempt whose answer got lost is repeated with the same
        contents."""

        async def attempt() -> None:
            await obstore.put_async(self._store, path, body, use_multipart=False)

        async with self._writes, self._gated(BucketOperation.PUT):
            await self._retried(BucketOperation.PUT, self._limits.write, attempt)

    async def delete(self, path: str) -> None:
        """Deletes an object. It is no error when there is none."""

        async def attempt() -> None:
            try:
                await obstore.delete_async(self._store, [path])
            except FileNotFoundError:
                return

        async with self._writes, self._gated(BucketOperation.DELETE):
            await self._retried(BucketOperation.DELETE, self._limits.write, attempt)

    # -- retries and the gate

    async def _retried(self, operation: BucketOperation, policy: RetryPolicy, attempt: Attempt[_T]) -> _T:
        def count(kind: FailureKind) -> None:
            self._counters.retries[operation, kind] += 1

        return await retried(attempt, policy, count)

    @asynccontextmanager
    async def _gated(self, operation: BucketOperation) -> AsyncIterator[None]:
        """Lets one request through the gate, and tells the gate how it ended."""
        if not self._gate.enter():
            self._counters.failures[operation, FailureKind.CLOSED_GATE] += 1
            raise RequestFailed(FailureKind.CLOSED_GATE, f"the bucket is away: {self._gate.reason}")
        try:
            yield
        except RequestFailed as failed:
            self._failed(operation, failed)
            raise
        except BaseException:
            self._gate.left()
            raise
        self._gate.passed()

    def _failed(self, operation: BucketOperation, failed: RequestFailed) -> None:
        self._counters.failures[operation, failed.kind] += 1
        if failed.kind not in TRANSIENT:
            self._gate.passed()  # the bucket is there: it answered
        elif self._gate.failed(failed.message):
            _log.warning("object tier: the bucket is away: %s failed: %s", operation, failed.message)


class BucketGate:
    """Refuses requests at once while the bucket is away, and lets one through after each pause. Pure.

    `enter` comes before a request and its retries. After the request comes `passed`, `failed`, or `left` when
    it ended without proving anything."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._breaker = Breaker()
        self._probing = False

    def __repr__(self) -> str:
        return f"<BucketGate {self._breaker.state(self._clock.now())} {self._breaker.reason!r}>"

    @property
    def reason(self) -> str:
        return self._breaker.reason

    def enter(self) -> bool:
        """Returns whether the request may be sent. After a pause one request goes ahead of the others."""
        state = self._breaker.state(self._clock.now())
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and self._probing):
            return False
        self._probing = state is BreakerState.HALF_OPEN
        return True

    def passed(self) -> None:
        self._probing = False
        self._breaker.succeeded(self._clock.now())

    def failed(self, reason: str) -> bool:
        """Returns whether this failure closed the gate."""
        self._probing = False
        was_open = self._breaker.state(self._clock.now()) is not BreakerState.OPEN
        self._breaker.failed(reason, self._clock.now())
        return was_open

    def left(self) -> None:
        self._probing = False


async def retried(attempt: Attempt[_T], policy: RetryPolicy, retrying: Callable[[FailureKind], None]) -> _T:
    """Repeats one request until it succeeds or the policy ends it. `retrying` is called for every attempt
    that failed and is followed by another. Errors: RequestFailed, with the kind of the last failure."""
    backoff = Backoff(policy.first_pause_seconds, policy.longest_pause_seconds)
    over_at = asyncio.get_running_loop().time() + policy.deadline_seconds
    for attempts_left in reversed(range(policy.attempts)):
        try:
            return await _once(attempt, policy.attempt_seconds, over_at)
        except RequestFailed as failed:
            pause = backoff.next()
            too_late = asyncio.get_running_loop().time() + pause >= over_at
            if not attempts_left or too_late or failed.kind not in TRANSIENT:
                raise
            retrying(failed.kind)
            await asyncio.sleep(pause)
    raise AssertionError("a retry policy has at least one attempt")


async def _once(attempt: Attempt[_T], seconds: float, over_at: float) -> _T:
    ends_at = min(over_at, asyncio.get_running_loop().time() + seconds)
    try:
        async with asyncio.timeout_at(ends_at):
            return await attempt()
    except RequestFailed:
        raise
    except TimeoutError:
        raise RequestFailed(
            FailureKind.SLOW, f"{FailureKind.SLOW}: no answer within {seconds:.3g} s"
        ) from None
    except Exception as error:
        raise failure_of(error) from None  # the text of obstore may hold what is secret
