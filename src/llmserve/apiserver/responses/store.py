"""The contract of a response store. Implementations: memory (one process) and redis.

A response is `put` when it is whole, or begun while it is made in the background and ended later. One that
was begun and is not renewed in time is LOST: the process that made it is gone. Each
call names a tenant, and finds only that tenant's responses.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llmserve.core.clock import Clock
from llmserve.core.ids import TenantId


@dataclass(frozen=True, slots=True)
class ResponseKey:
    tenant: TenantId
    response_id: str


class ResponseStage(StrEnum):
    RUNNING = "running"
    LOST = "lost"
    ENDED = "ended"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """text: opaque here."""

    stage: ResponseStage
    text: str


class ResponseStore(Protocol):
    """Called concurrently. Every call has a deadline. Errors of all of them: StateUnavailable."""

    async def put(self, key: ResponseKey, text: str) -> None:
        """Keeps a whole response, in place of what had its key."""

    async def begin(self, key: ResponseKey, text: str, lease_seconds: float) -> None:
        """Keeps one that is being made, in place of what had its key."""

    async def renew(self, key: ResponseKey, lease_seconds: float) -> bool:
        """Extends the lease of one that is being made. Returns False when it was cancelled or dropped."""

    async def end(self, key: ResponseKey, text: str) -> bool:
        """Keeps one that was begun and is whole. Returns False, and keeps nothing, when it was cancelled or
        dropped."""

    async def cancel(self, key: ResponseKey, text: str) -> bool:
        """Cancels one that is being made. Returns False, and changes nothing, when it is not being made."""

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        """Returns None when there is none, or no longer."""

    async def aclose(self) -> None:
        """Idempotent."""


@dataclass(slots=True)
class _KeptResponse:
    stage: ResponseStage
    text: str
    forgotten_at: float
    lost_at: float = float("inf")


class MemoryResponses:
    """Keeps each for keep_seconds, and most_bytes of texts at most: the oldest go first."""

    def __init__(self, clock: Clock, keep_seconds: float, most_bytes: int) -> None:
        self._clock, self._keep_seconds, self._most_bytes = clock, keep_seconds, most_bytes
        self._entries: OrderedDict[ResponseKey, _KeptResponse] = OrderedDict()
        self._bytes = 0

    async def put(self, key: ResponseKey, text: str) -> None:
        self._keep(key, ResponseStage.ENDED, text)

    async def begin(self, key: ResponseKey, text: str, lease_seconds: float) -> None:
        self._keep(key, ResponseStage.RUNNING, text, self._clock.now() + lease_seconds)

    async def renew(self, key: ResponseKey, lease_seconds: float) -> bool:
        entry = self._running(key)
        if entry is None:
            return False
        entry.lost_at = self._clock.now() + lease_seconds
        return True

    async def end(self, key: ResponseKey, text: str) -> bool:
        return self._change(key, ResponseStage.ENDED, text)

    async def cancel(self, key: ResponseKey, text: str) -> bool:
        return self._change(key, ResponseStage.CANCELLED, text)

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        self._forget_old()
        entry = self._entries.get(key)
        if entry is None:
            return None
        lost = entry.stage is ResponseStage.RUNNING and self._clock.now() >= entry.lost_at
        return StoredResponse(ResponseStage.LOST if lost else entry.stage, entry.text)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _running(self, key: ResponseKey) -> _KeptResponse | None:
        self._forget_old()
        entry = self._entries.get(key)
        return entry if entry is not None and entry.stage is ResponseStage.RUNNING else None

    def _change(self, key: ResponseKey, stage: ResponseStage, text: str) -> bool:
        if self._running(key) is None:
            return False
        self._keep(key, stage, text)
        return True

    def _keep(self, key: ResponseKey, stage: ResponseStage, text: str, lost_at: float = float("inf")) -> None:
        """Adds a response as the newest one; the oldest are dropped first."""
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _KeptResponse(stage, text, self._clock.now() + self._keep_seconds, lost_at)
        self._bytes += _size(text)
        self._forget_old()

    def _forget_old(self) -> None:
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if self._bytes <= self._most_bytes and oldest.forgotten_at > self._clock.now():
                return
            self._drop(key)

    def _drop(self, key: ResponseKey) -> None:
        self._bytes -= _size(self._entries.pop(key).text)


def _size(text: str) -> int:
    """Returns the size of a text in bytes. JSON is ASCII here."""
    return len(text)
