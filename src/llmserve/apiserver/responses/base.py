"""The contract of a response store. Implementations: memory (one process) and redis.

A response is `put` when it is whole, or begun while it is made in the background and ended later. One that
was begun and is not renewed in time is LOST: the process that made it is gone. Whoever asks for one names
its tenant, and finds no other's.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llmserve.core.ids import TenantId


@dataclass(frozen=True, slots=True)
class ResponseKey:
    tenant: TenantId
    response_id: str


class Stage(StrEnum):
    RUNNING = "running"
    LOST = "lost"
    ENDED = "ended"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """text: opaque here."""

    stage: Stage
    text: str


class ResponseStore(Protocol):
    """Called concurrently. Every call has a deadline. Errors of all of them: StateUnavailable."""

    async def put(self, key: ResponseKey, text: str) -> None:
        """Keeps a whole response, in place of what had its key."""

    async def begin(self, key: ResponseKey, text: str, lease_seconds: float) -> None:
        """Keeps one that is being made, in place of what had its key."""

    async def renew(self, key: ResponseKey, lease_seconds: float) -> bool:
        """It is still being made. False: it was cancelled or forgotten, and need not be."""

    async def end(self, key: ResponseKey, text: str) -> bool:
        """One that was begun is whole. False, and nothing is kept: it was cancelled or forgotten before."""

    async def cancel(self, key: ResponseKey, text: str) -> bool:
        """False, and nothing has changed: it is not being made."""

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        """None: there is none, or no longer."""

    async def aclose(self) -> None:
        """Idempotent."""
