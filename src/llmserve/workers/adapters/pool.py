"""The device slots of one engine: loads versions for legs, unloads them, and holds them while legs run."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from math import inf

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.errors import AdapterUnavailable, EngineDead, LLMServeError
from llmserve.core.ids import AdapterDigest
from llmserve.core.tasks import TaskOwner
from llmserve.engines.base import Engine
from llmserve.metrics.worker import AdapterMetrics
from llmserve.workers.adapters.files import HostFiles
from llmserve.workers.adapters.slots import DeviceSlots, SlotLeg

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PooledVersion:
    """A version that legs hold, or may hold while it is `served`. load_seconds: time of its last load; 0:
    there was none. error: why it could not be fetched or loaded last; empty: it could. fetching: one leg
    fetches for all."""

    source: str
    load_seconds: float = 0.0
    error: str = ""
    served: bool = True
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)


class AdapterPool:
    """Each leg runs within `hold`. `serve` and `let_go` say which versions legs may hold. After `close`
    nothing begins; the owner of `tasks` ends what goes on.

    on_change: is called when a version that no leg waits for was loaded, and when one could not be had."""

    def __init__(
        self,
        engine: Engine,
        slots: DeviceSlots,
        files: HostFiles,
        tasks: TaskOwner,
        metrics: AdapterMetrics,
        on_change: Callable[[], None],
    ) -> None:
        self._engine, self._slots, self._files = engine, slots, files
        self._tasks, self._metrics, self._on_change = tasks, metrics, on_change
        self._loop = asyncio.get_running_loop()
        self._versions: dict[AdapterDigest, PooledVersion] = {}
        self._starts: dict[SlotLeg, asyncio.Future[LLMServeError | None]] = {}
        self._exits: dict[AdapterDigest, asyncio.Event] = {}
        self._gone: dict[AdapterDigest, asyncio.Event] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._set_alarm(inf)

    # -- which versions there are

    def serve(self, digest: AdapterDigest, source: str, tier: AdapterTier, *, pinned: bool = False) -> None:
        """From now on legs may hold this version. source: where its files come from if they are lost. tier:
        SOURCE: nothing is loaded before a leg wants it; DEVICE: it gets a slot even if another version that
        is idle loses its own, and, pinned, keeps it as long as it can; else it gets a slot that is free."""
        assert digest, "the base model needs no slot"
        version = self._versions.setdefault(digest, PooledVersion(source))
        version.source, version.served = source, True
        self._slots.restore(digest)
        if tier is not AdapterTier.SOURCE:
            self._slots.wish(digest, near=tier is AdapterTier.DEVICE, pinned=pinned)
        self._act()

    async def let_go(self, digest: AdapterDigest) -> None:
        """Returns when no leg holds a version any more and the engine has forgotten it with its blocks. New
        legs are refused from the call on. `serve` takes it back, if the call was cancelled before. Errors:
        EngineDead."""
        if digest in self._versions:
            self._versions[digest].served = False
        gone = self._gone.setdefault(digest, asyncio.Event())
        self._slots.retire(digest)
        try:
            self._act()
            await gone.wait()
        finally:
            self._gone.pop(digest, None)
        await self._engine.unload_adapter(digest, forget_blocks=True)
        self._versions.pop(digest, None)

    def version(self, digest: AdapterDigest) -> PooledVersion | None:
        return self._versions.get(digest)

    def tier(self, digest: AdapterDigest) -> AdapterTier:
        return AdapterTier.DEVICE if self._slots.is_loaded(digest) else self._files.tier(digest)

    def legs(self) -> dict[AdapterDigest, int]:
        """Returns how many legs hold each version, or wait for it."""
        return self._slots.legs()

    # -- legs

    @asynccontextmanager
    async def hold(self, digest: AdapterDigest) -> AsyncIterator[AdapterLoad]:
        """The engine can run the version while the context is open. Errors: AdapterUnavailable, when this
        worker is not to hold the version or cannot load it; EngineDead."""
        began, tier = self._loop.time(), self.tier(digest)
        if tier is AdapterTier.SOURCE:
            await self._fetch(digest)
        self._check_served(digest)
        leg = self._slots.want(digest, self._loop.time())
        start = self._starts[leg] = self._loop.create_future()
        try:
            self._act()
            if error := await start:
                raise error
            yield self._note(AdapterLoad(tier, self._loop.time() - began))
        finally:
            del self._starts[leg]
            self._slots.leave(leg)
            self._act()

    async def _fetch(self, digest: AdapterDigest) -> None:
        """Brings back files that another process has removed, before a slot is asked for."""
        version = self._check_served(digest)
        async with version.fetching:
            if self.tier(digest) is AdapterTier.SOURCE:
                try:
                    async with self._files.on_disk(version.source, digest):
                        pass
                except LLMServeError as error:
                    version.error = error.message
                    self._on_change()
                    raise _refusal(digest, error) from error

    def _check_served(self, digest: AdapterDigest) -> PooledVersion:
        version = self._versions.get(digest)
        if version is None or not version.served:
            raise AdapterUnavailable(f"this worker does not hold adapter {digest}")
        return version

    def _note(self, load: AdapterLoad) -> AdapterLoad:
        self._metrics.legs_total.labels(load.tier).inc()
        self._metrics.wait_seconds.observe(load.seconds)
        return load

    # -- slots

    def _act(self) -> None:
        """Does what the slots decide. Called after each event."""
        if self._closed:
            return
        moves = self._slots.decide(self._loop.time())
        for leg in moves.starts:
            self._start(leg)
        for digest in moves.unloads:
            self._exits.pop(digest).set()
        for digest in moves.loads:
            self._exits[digest] = leaves = asyncio.Event()
            self._tasks.spawn("adapter", self._occupy(digest, leaves))
        for digest, gone in self._gone.items():
            if not self._slots.has(digest):
                gone.set()
        self._metrics.used_slots.set(self._slots.used)
        self._set_alarm(moves.again_at)

    def _start(self, leg: SlotLeg, error: LLMServeError | None = None) -> None:
        if not self._starts[leg].done():  # else its leg was cancelled at this moment
            self._starts[leg].set_result(error)

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if at == inf else self._loop.call_at(at, self._act)

    async def _occupy(self, digest: AdapterDigest, leaves: asyncio.Event) -> None:
        """The life of a version in a slot. Its files stay on this host as long."""
        async with AsyncExitStack() as files:
            try:
                await self._load(digest, files)
            except Exception as error:
                self._failed(digest, error)
                return
            await leaves.wait()
            await self._unload(digest)

    async def _load(self, digest: AdapterDigest, used: AsyncExitStack) -> None:
        began, version = self._loop.time(), self._versions[digest]
        files = await used.enter_async_context(self._files.on_disk(version.source, digest))
        async with self._files.nearest(files) as nearest:
            await self._engine.load_adapter(digest, nearest.path)
        version.load_seconds, version.error = self._loop.time() - began, ""
        self._metrics.load_seconds.observe(version.load_seconds)
        _log.info("adapter loaded: %s from=%s seconds=%.3f", digest, nearest.tier, version.load_seconds)
        self._slots.loaded(digest)
        self._moved(digest)

    def _failed(self, digest: AdapterDigest, error: Exception) -> None:
        """Refuses the legs that waited. What runs goes on."""
        unexpected = None if isinstance(error, LLMServeError) else error
        _log.error("adapter not loaded: %s: %s", digest, error, exc_info=unexpected)
        self._versions[digest].error = str(error)
        self._metrics.load_failures_total.inc()
        del self._exits[digest]
        for leg in self._slots.failed(digest):
            self._start(leg, _refusal(digest, error))
        self._moved(digest)

    async def _unload(self, digest: AdapterDigest) -> None:
        try:
            await self._engine.unload_adapter(digest)
        except Exception:  # mostly of an engine that is gone, which its worker notices elsewhere
            _log.exception("adapter not unloaded: %s", digest)
        if self._versions[digest].served:
            self._metrics.evictions_total.inc()
        _log.info("adapter unloaded: %s", digest)
        self._slots.unloaded(digest)
        self._act()

    def _moved(self, digest: AdapterDigest) -> None:
        self._act()
        if digest not in self._slots.legs():
            self._on_change()


def _refusal(digest: AdapterDigest, error: Exception) -> LLMServeError:
    """Whatever is wrong here, another worker may run the leg."""
    if isinstance(error, EngineDead):
        return EngineDead(error.message)
    return AdapterUnavailable(f"adapter {digest} cannot be loaded by this worker: {error}")
