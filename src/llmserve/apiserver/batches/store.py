"""The batches of tenants, as they are kept.

What is said of a batch is written by the apiserver that has its claim, and by nobody else once it is made. A
cancellation is an object beside it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openai.types import Batch
from pydantic import BaseModel

from llmserve.apiserver.auth.caller import AccessScope, Caller, only
from llmserve.apiserver.batches.names import (
    BATCHES,
    OPEN,
    batch_path,
    cancel_path,
    check_id,
    folder_of,
    journal_path,
    made_at,
    new_batch_id,
    open_path,
)
from llmserve.apiserver.batches.storage import BatchStorage, Claim
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import TenantId
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits

ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
_STARTED_LATE_SECONDS = 3600.0  # an open batch of which nothing is said by then was never made


class StoredBatch(BaseModel):
    """A batch and what its owner must know of it. models, adapters, max_priority, limits, key_id, key_digest:
    those of its Caller. output_seconds: how long its results are kept; None for the default."""

    batch: Batch
    tenant: str
    models: list[str] | None = None
    adapters: list[str] | None = None
    max_priority: int | None = None
    limits: KeyLimits = NO_LIMITS
    key_id: str = ""
    key_digest: str | None = None
    output_seconds: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.batch.status in ENDED

    @property
    def caller(self) -> Caller:
        """Who its lines are run for."""
        return Caller(
            TenantId(self.tenant),
            frozenset({AccessScope.INFERENCE}),
            only(self.models),
            only(self.adapters),
            background=True,
            max_priority=self.max_priority,
            limits=self.limits,
            key_id=self.key_id,
            key_digest=self.key_digest,
        )

    def reached(self, status: str, now: float) -> None:
        """Sets the status, and the time at which it was reached if that is not noted yet."""
        self.batch.status = status  # type: ignore[assignment]
        if getattr(self.batch, f"{status}_at") is None:
            setattr(self.batch, f"{status}_at", int(now))


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be made. window: its completion window in words, and window_seconds in seconds."""

    endpoint: str
    input_file_id: str
    window: str
    window_seconds: float
    metadata: Mapping[str, str] | None = None
    output_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that has not ended. folder: its tenant's."""

    folder: str
    batch_id: str


class BatchStore:
    """now: Unix time. Errors of all calls, besides their own: those of the storage."""

    def __init__(
        self, storage: BatchStorage, keep_seconds: float, now: Callable[[], float] = time.time
    ) -> None:
        self._storage, self._keep_seconds, self._now = storage, keep_seconds, now

    async def create(self, caller: Caller, new: NewBatch) -> Batch:
        now = self._now()
        batch = Batch(
            id=new_batch_id(now),
            object="batch",
            status="validating",
            endpoint=new.endpoint,
            input_file_id=new.input_file_id,
            completion_window=new.window,
            created_at=int(now),
            expires_at=int(now + new.window_seconds),
            metadata=None if new.metadata is None else dict(new.metadata),
        )
        stored = StoredBatch(
            batch=batch,
            tenant=caller.tenant,
            models=None if caller.models is None else sorted(caller.models),
            adapters=None if caller.adapters is None else sorted(caller.adapters),
            max_priority=caller.max_priority,
            limits=caller.limits,
            key_id=caller.key_id,
            key_digest=caller.key_digest,
            output_seconds=new.output_seconds,
        )
        await self._storage.put(open_path(folder_of(caller.tenant), batch.id), b"")
        await self.save(stored)
        return batch

    async def get(self, tenant: TenantId, batch_id: str) -> Batch:
        """Errors: NotFound."""
        stored = await self.load(folder_of(tenant), check_id(batch_id, "batch"))
        if stored is None:
            raise NotFound(f"there is no batch {batch_id!r}")
        return await self._shown(stored)

    async def page(self, tenant: TenantId, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Returns the batches before `after`, the latest first, and whether there are more."""
        folder = folder_of(tenant)
        names = [name.removesuffix(".json") for name in await self._storage.names(f"{BATCHES}/{folder}")]
        earlier = [name for name in reversed(names) if after is None or name < after]
        stored = [await self.load(folder, name) for name in earlier[:limit]]
        return [await self._shown(one) for one in stored if one is not None], len(earlier) > limit

    async def cancel(self, tenant: TenantId, batch_id: str) -> Batch:
        """Asks the batch's owner to cancel it. Errors: NotFound; InvalidRequest when it has ended."""
        batch = await self.get(tenant, batch_id)
        if batch.status in ENDED or batch.status == "finalizing":
            raise InvalidRequest(f"batch {batch_id} is {batch.status}, and cannot be cancelled")
        if batch.status != "cancelling":
            await self._storage.put(cancel_path(batch_id), json.dumps({"at": int(self._now())}).encode())
        return await self.get(tenant, batch_id)

    # -- for the owner

    async def load(self, folder: str, batch_id: str) -> StoredBatch | None:
        data = await self._storage.get(batch_path(folder, batch_id))
        return None if data is None else StoredBatch.model_validate_json(data)

    async def save(self, stored: StoredBatch) -> None:
        path = batch_path(folder_of(TenantId(stored.tenant)), stored.batch.id)
        await self._storage.put(path, stored.model_dump_json().encode())

    async def cancelling_at(self, batch_id: str) -> int | None:
        """Returns the Unix time at which the batch was cancelled; None if it was not."""
        data = await self._storage.get(cancel_path(batch_id))
        return None if data is None else int(json.loads(data)["at"])

    async def open_batches(self) -> Sequence[OpenBatch]:
        """Returns the batches of all tenants that have not ended, the oldest first."""
        names = [name.partition(".") for name in await self._storage.names(OPEN)]
        found = [OpenBatch(folder, batch_id) for folder, _, batch_id in names if batch_id]
        return sorted(found, key=lambda one: one.batch_id)

    async def claim(self, one: OpenBatch) -> Claim | None:
        return await self._storage.claim(open_path(one.folder, one.batch_id))

    async def close(self, one: OpenBatch) -> None:
        """The batch has ended: what only its owner needs goes. Idempotent."""
        for path in (journal_path(one.batch_id), cancel_path(one.batch_id)):
            await self._storage.delete(path)
        await self._storage.delete(open_path(one.folder, one.batch_id))

    def was_never_made(self, one: OpenBatch) -> bool:
        """Returns whether a batch of which nothing is said is one that a process died about to make."""
        return self._now() - made_at(one.batch_id) > _STARTED_LATE_SECONDS

    async def sweep(self) -> None:
        """Deletes what is said of batches that ended long ago, of all tenants."""
        for folder in await self._storage.names(BATCHES):
            for name in await self._storage.names(f"{BATCHES}/{folder}"):
                batch_id = name.removesuffix(".json")
                if self._now() - made_at(batch_id) <= self._keep_seconds:
                    break  # the others are younger
                stored = await self.load(folder, batch_id)
                if stored is not None and stored.has_ended:
                    await self._storage.delete(cancel_path(batch_id))  # one that came just after the end
                    await self._storage.delete(batch_path(folder, batch_id))

    async def _shown(self, stored: StoredBatch) -> Batch:
        """Returns a batch as its tenant sees it: cancelled ones before their owner has noticed."""
        batch = stored.batch
        if batch.status in ("validating", "in_progress"):
            batch.cancelling_at = await self.cancelling_at(batch.id)
            if batch.cancelling_at is not None:
                batch.status = "cancelling"
        return batch
