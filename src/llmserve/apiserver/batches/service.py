"""Runs the batches that nobody else runs, and deletes what is over."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llmserve.apiserver.batches.journal import Journal
from llmserve.apiserver.batches.run import BatchRun, RunParts
from llmserve.apiserver.batches.storage import BatchStorage, Claim
from llmserve.apiserver.batches.store import OpenBatch
from llmserve.core.errors import LLMServeError
from llmserve.core.tasks import TaskOwner

_log = logging.getLogger(__name__)
_SWEEP_SECONDS = 3600.0
# A batch that could not go on is tried again after this.
_PAUSE_SECONDS = 15.0
# Batches of one tenant that an apiserver runs at the same time; each remembers the ids of its lines.
_MOST_OF_A_TENANT = 4


class BatchService:
    """Life: start (once) -> aclose (idempotent). poll_seconds: how often it looks for batches."""

    def __init__(self, storage: BatchStorage, parts: RunParts, poll_seconds: float) -> None:
        self.parts = parts
        self._storage, self._poll_seconds = storage, poll_seconds
        self._woken = asyncio.Event()
        self._owner: TaskOwner | None = None
        self._running: dict[str, OpenBatch] = {}
        self._not_before: dict[str, float] = {}  # of batches that could not go on
        self._rng = random.Random()

    def start(self) -> None:
        self._owner = TaskOwner("batches")
        self._owner.spawn("find", self._find_always())
        self._owner.spawn("sweep", self._sweep_always())

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    async def aclose(self) -> None:
        """Lines that run are given up, and run again wherever their batch goes on."""
        if self._owner is not None:
            await self._owner.aclose()

    async def _find_always(self) -> None:
        while True:
            self._woken.clear()
            with _logged():
                await self._find()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._about(self._poll_seconds)):
                    await self._woken.wait()

    async def _sweep_always(self) -> None:
        while True:
            with _logged():
                await self.parts.files.sweep()
                await self.parts.store.sweep()
            await asyncio.sleep(self._about(_SWEEP_SECONDS))

    async def _find(self) -> None:
        """Begins to run what nobody runs. Errors: those of the storage."""
        assert self._owner is not None, "not started"
        of_tenant = Counter(one.folder for one in self._running.values())
        now = asyncio.get_running_loop().time()
        for one in await self.parts.store.open_batches():
            waits = self._not_before.get(one.batch_id, 0.0) > now
            if waits or one.batch_id in self._running or of_tenant[one.folder] >= _MOST_OF_A_TENANT:
                continue
            if (claim := await self.parts.store.claim(one)) is not None:
                of_tenant[one.folder] += 1
                self._running[one.batch_id] = one
                self._owner.spawn(one.batch_id, self._run(one, claim))

    async def _run(self, one: OpenBatch, claim: Claim) -> None:
        self._not_before[one.batch_id] = float("inf")
        self.parts.metrics.running.inc()
        try:
            with _logged(f"batch {one.batch_id} cannot go on, and is tried again"):
                if await self._run_claimed(one, claim):
                    await self.parts.store.close(one)
                    del self._not_before[one.batch_id]
        finally:
            self.parts.metrics.running.dec()
            del self._running[one.batch_id]
            if one.batch_id in self._not_before:
                self._not_before[one.batch_id] = asyncio.get_running_loop().time() + _PAUSE_SECONDS
            with _logged():
                await claim.release()
            self.wake()

    async def _run_claimed(self, one: OpenBatch, claim: Claim) -> bool:
        """Returns whether the batch is over."""
        stored = await self.parts.store.load(one.folder, one.batch_id)
        if stored is None:
            return self.parts.store.was_never_made(one)
        if stored.has_ended:
            return True
        journal = Journal(self._storage, one.batch_id, self.parts.metrics)
        return await BatchRun(self.parts, stored, journal, claim).run()

    def _about(self, seconds: float) -> float:
        """Several apiservers shall not look at the same moment."""
        return seconds * self._rng.uniform(0.8, 1.2)


@contextmanager
def _logged(what: str = "the storage of batches cannot be used") -> Iterator[None]:
    """Errors pass, those of the storage and those that are defects: what they have ended is done later."""
    try:
        yield
    except LLMServeError as error:
        _log.warning("%s: %s", what, error.message)
    except Exception:
        _log.exception("%s", what)
