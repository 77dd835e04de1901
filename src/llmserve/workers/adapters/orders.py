"""Carries out what the router wants this worker to hold, and reports it."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from llmserve.core.adapters import BASE_MODEL, AdapterOrder, AdapterReport, AdapterTier, nearest
from llmserve.core.errors import AdapterUnavailable, LLMServeError
from llmserve.core.ids import AdapterDigest
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.worker import AdapterMetrics
from llmserve.models.adapters import AdapterFiles
from llmserve.workers.adapters.files import HostFiles
from llmserve.workers.adapters.pool import AdapterPool

_log = logging.getLogger(__name__)

_AT_ONCE = 2  # orders whose files are fetched; the others wait
LOOK_SECONDS = 10.0
# A router withdraws an order while it pauses after a failed load, for 60 s at most (router/adapters). Its
# next try is to find the files here.
KEEP_SECONDS = 90.0


@dataclass(eq=False, slots=True)
class _Kept:
    """What becomes of an order. digest: empty until the version is here, or can be fetched when it is needed.
    leaving: the order was withdrawn, and legs may still hold the version."""

    order: AdapterOrder
    digest: AdapterDigest = BASE_MODEL
    files: AdapterFiles | None = None
    error: LLMServeError | None = None
    leaving: bool = False
    task: asyncio.Task[None] | None = None

    def fits(self, order: AdapterOrder) -> bool:
        """Returns whether this order asks for nothing new. The router may have learnt its digest from the
        report of this one."""
        known = (self.order.digest, self.digest)
        same = replace(order, digest=self.order.digest) == self.order
        return same and order.digest in known and not self.leaving

    def end_task(self) -> None:
        if self.task is not None:
            self.task.cancel()


class AdapterOrders:
    """`carry_out` is called each time that the router's orders changed. `watch` is one task of the worker.
    What failed is reported, and is tried again when its order was withdrawn and given again: the router
    decides how often.

    on_change: is called when the router should hear of a change soon."""

    def __init__(
        self,
        pool: AdapterPool,
        files: HostFiles,
        tasks: TaskOwner,
        metrics: AdapterMetrics,
        on_change: Callable[[], None],
    ) -> None:
        self._pool, self._files, self._tasks = pool, files, tasks
        self._metrics, self._on_change = metrics, on_change
        self._kept: dict[int, _Kept] = {}
        self._spare: dict[AdapterDigest, float] = {}  # when versions were let go whose files are still here
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def carry_out(self, orders: Sequence[AdapterOrder]) -> None:
        """Holds what is ordered, and lets go of all else. Returns at once."""
        numbers = {order.number for order in orders}
        for kept in self._kept.values():
            if kept.order.number not in numbers and not kept.leaving:
                self._leave(kept)
        for order in orders:
            before = self._kept.get(order.number)
            if before is not None and before.fits(order):
                before.order = order
            else:
                self._begin(order, before)

    def reports(self) -> tuple[AdapterReport, ...]:
        """Returns what became of each order, and of those that were withdrawn until they are let go."""
        legs = self._pool.legs()
        return tuple(self._report(kept, legs) for kept in self._kept.values())

    async def watch(self) -> None:
        """Follows what other processes do to the files, and removes those that nobody wants any more. Runs
        for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._remove_spare()
                await self._files.look([kept.digest for kept in self._kept.values() if kept.digest])
            except Exception as error:
                message = "the adapters of this host cannot be looked at: %s"
                _log.warning(message, error, exc_info=_unforeseen(error))
            self._measure()

    # -- an order

    def _begin(self, order: AdapterOrder, before: _Kept | None) -> None:
        kept = self._kept[order.number] = _Kept(order)
        if before is not None:
            before.end_task()
            if not before.leaving:
                kept.digest, kept.files = before.digest, before.files
        kept.task = self._tasks.spawn("adapter-order", self._try(kept))

    async def _try(self, kept: _Kept) -> None:
        try:
            await self._keep(kept)
        except LLMServeError as error:
            _log.warning("adapter %s: %s", kept.order.source, error.message)
            kept.error = error
        except Exception as error:
            _log.exception("adapter %s", kept.order.source)
            kept.error = LLMServeError(f"{type(error).__name__}: {error}")
        self._on_change()

    async def _keep(self, kept: _Kept) -> None:
        order = kept.order
        async with AsyncExitStack() as used:
            if order.tier is AdapterTier.SOURCE and order.digest:
                kept.digest = order.digest
            else:
                kept.files = await self._bring(order, used)
                kept.digest = kept.files.digest
            self._serve(kept.digest)
            self._measure()
            if order.pinned:
                self._on_change()
                await asyncio.get_running_loop().create_future()  # its files stay until the order changes

    async def _bring(self, order: AdapterOrder, used: AsyncExitStack) -> AdapterFiles:
        files = await used.enter_async_context(self._files.on_disk(order.source, order.digest, self._at_once))
        if order.tier in (AdapterTier.DEVICE, AdapterTier.DRAM):
            files = await used.enter_async_context(self._files.nearest(files))
        _log.info("adapter %s is here: %s in %s", order.source, files.digest, files.tier)
        return files

    def _serve(self, digest: AdapterDigest) -> None:
        """Lets legs hold a version, as near as one of its orders says."""
        for kept in [one for one in self._kept.values() if one.leaving and one.digest == digest]:
            kept.end_task()
            del self._kept[kept.order.number]
        orders = self._orders_of(digest)
        tier = nearest(*(order.tier for order in orders))
        pinned = any(order.pinned and order.tier is tier for order in orders)
        self._pool.serve(digest, orders[0].source, tier, pinned=pinned)

    def _orders_of(self, digest: AdapterDigest) -> list[AdapterOrder]:
        return [one.order for one in self._kept.values() if one.digest == digest and not one.leaving]

    # -- its end

    def _leave(self, kept: _Kept) -> None:
        kept.leaving = True
        kept.end_task()
        kept.task = self._tasks.spawn("adapter-end", self._let_go(kept))

    async def _let_go(self, kept: _Kept) -> None:
        try:
            if kept.digest:  # else nothing has become of it
                await self._end(kept.digest)
        except Exception as error:
            message = "adapter %s cannot be let go: %s"
            _log.warning(message, kept.digest, error, exc_info=_unforeseen(error))
        if self._kept.get(kept.order.number) is kept:
            del self._kept[kept.order.number]
        self._measure()
        self._on_change()

    async def _end(self, digest: AdapterDigest) -> None:
        if self._orders_of(digest):
            self._serve(digest)
        else:
            await self._pool.let_go(digest)
            self._spare[digest] = asyncio.get_running_loop().time()
            _log.info("adapter let go: %s", digest)

    async def _remove_spare(self) -> None:
        now = asyncio.get_running_loop().time()
        for digest in [one for one, since in self._spare.items() if now - since >= KEEP_SECONDS]:
            if not self._is_wanted(digest):
                del self._spare[digest]
                await self._files.remove(digest)

    def _is_wanted(self, digest: AdapterDigest) -> bool:
        return any(digest in (one.digest, one.order.digest) for one in self._kept.values())

    # -- what is

    def _report(self, kept: _Kept, legs: Mapping[AdapterDigest, int]) -> AdapterReport:
        error, version = kept.error, self._pool.version(kept.digest) if kept.digest else None
        if error is None and version is not None and version.error:
            error = AdapterUnavailable(version.error)
        return AdapterReport(
            number=kept.order.number,
            digest=kept.digest,
            rank=kept.files.rank if kept.files else 0,
            size_bytes=kept.files.size_bytes if kept.files else 0,
            tier=self._pool.tier(kept.digest),
            running=legs.get(kept.digest, 0),
            load_seconds=version.load_seconds if version else 0.0,
            error=type(error).__name__ if error else "",
            message=error.message if error else "",
        )

    def _measure(self) -> None:
        sizes = self._files.bytes_by_tier()
        for tier in (AdapterTier.DRAM, AdapterTier.DISK):
            self._metrics.bytes.labels(tier).set(sizes[tier])


def _unforeseen(error: Exception) -> Exception | None:
    """Returns an error whose traceback a log needs; None: its message is enough."""
    return None if isinstance(error, OSError | LLMServeError) else error
