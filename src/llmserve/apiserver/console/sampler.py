"""What all viewers of the console see: one look for all of them, twice a second while somebody watches, and
what the latest minutes were like."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from llmserve.core.tasks import TaskOwner
from llmserve.overview.views import RoleView, Snapshot

_log = logging.getLogger(__name__)

FAST_SECONDS = 0.5
SLOW_SECONDS = 5.0
HISTORY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A moment in figures for charts. at: Unix time. By name: workers: (running, waiting, used part of the KV
    blocks, bytes of KV fetched since its start); tenants: (queued, running, served tokens, refused); tiers:
    (used bytes, hit tokens). prompts: (tokens, those of them that were cached) of requests that ended."""

    at: float
    queued_requests: int
    running_requests: int
    workers: dict[str, tuple[int, int, float, int]]
    tenants: dict[str, tuple[int, int, int, int]]
    tiers: dict[str, tuple[int, int]]
    prompts: tuple[int, int]


def point_of(now: Snapshot, at: float) -> HistoryPoint:
    workers = {role.name: role.worker for role in now.roles if role.worker is not None}
    return HistoryPoint(
        at=round(at, 2),
        queued_requests=now.queued_requests,
        running_requests=now.running_requests,
        workers={
            name: (
                one.running_requests,
                one.waiting_requests,
                round(one.used_blocks / max(1, one.total_blocks), 4),
                one.transferred_bytes,
            )
            for name, one in workers.items()
        },
        tenants={
            one.name: (one.queued_requests, one.running_requests, one.served_tokens, one.refused_requests)
            for one in now.tenants
        },
        tiers={one.name: (one.used_bytes, one.hit_tokens) for one in now.tiers},
        prompts=(now.index.prompt_tokens, now.index.cached_tokens),
    )


def for_events(now: Snapshot) -> Snapshot:
    """Returns a snapshot that is small enough to be sent twice a second. It grows with the workers, not with
    their square: ways that no KV goes are left out, and so are the hottest prefixes."""
    return replace(now, roles=tuple(map(_used_pairs, now.roles)), index=replace(now.index, hottest=()))


def _used_pairs(role: RoleView) -> RoleView:
    if role.worker is None:
        return role
    used = tuple(one for one in role.worker.pairs if one.chosen and one.transfers)
    return replace(role, worker=replace(role.worker, pairs=used))


class Sampler:
    """Looks begin with the first viewer. They go on slowly while nobody watches, for as long as the history
    is, and stop then. Made inside a running loop. Life: aclose (idempotent)."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Snapshot]],
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._look, self._clock, self._unix = look, clock, unix
        self._owner = TaskOwner("console")
        self._task: asyncio.Task[None] | None = None
        self._viewers, self._closed = 0, False
        self._watched_at = 0.0
        self._wake = asyncio.Event()
        self._fresh = asyncio.Event()
        self._latest: Snapshot | None = None
        self._points: deque[HistoryPoint] = deque()

    @property
    def history(self) -> list[HistoryPoint]:
        """The oldest first."""
        return list(self._points)

    async def watch(self) -> AsyncGenerator[Snapshot, None]:
        """Yields each look from now on, until the sampler closes."""
        self._viewers += 1
        self._begin()
        try:
            while not self._closed:
                await self._fresh.wait()
                if self._latest is not None:
                    yield self._latest
        finally:
            self._viewers -= 1
            self._watched_at = self._clock()

    async def aclose(self) -> None:
        self._closed = True
        self._fresh.set()
        await self._owner.aclose()

    def _begin(self) -> None:
        self._watched_at = self._clock()
        self._wake.set()
        if not self._closed and (self._task is None or self._task.done()):
            self._task = self._owner.spawn("sampler", self._run())

    async def _run(self) -> None:
        while self._viewers or self._clock() - self._watched_at < HISTORY_SECONDS:
            self._wake.clear()
            try:
                self._take(await self._look())
            except Exception:
                _log.exception("a look at the cluster failed, and the next one is later")
                await asyncio.sleep(SLOW_SECONDS)
            if self._viewers:
                await asyncio.sleep(FAST_SECONDS)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), SLOW_SECONDS)

    def _take(self, now: Snapshot) -> None:
        at = self._unix()
        self._latest = now
        self._points.append(point_of(now, at))
        while self._points[0].at < at - HISTORY_SECONDS:
            self._points.popleft()
        fresh, self._fresh = self._fresh, asyncio.Event()
        fresh.set()
