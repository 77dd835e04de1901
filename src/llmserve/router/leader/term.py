"""The services of one term: built before it begins, restored from the former leader, dropped when it ends."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.core.errors import ManifestError, NotLeader, StateUnavailable
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.router import RouterMetrics
from llmserve.router.adapters.calls import AdapterCalls
from llmserve.router.adapters.snapshot import AdapterSnapshot
from llmserve.router.adapters.watch import AdapterWatch
from llmserve.router.calls import SessionCalls
from llmserve.router.commands import OperatorCommands, RouterLiveSettings
from llmserve.router.controller import Controller
from llmserve.router.event_loop import EventLoop
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.leader.state import Saved, SharedState, StateKey, Term
from llmserve.router.models.calls import ModelCalls
from llmserve.router.models.snapshot import ModelBookSnapshot
from llmserve.router.observe import MetricsRecorder, QueueSpans
from llmserve.router.prefix.index import PrefixIndex
from llmserve.router.settings import RouterSettings
from llmserve.rpc.role import set_log_level
from llmserve.scheduler.snapshot import SchedulerSnapshot
from llmserve.tracing.base import NO_TRACER, Tracer

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_ALL_AGAIN_SECONDS = 10.0  # the shared state may have come back without what it had


@dataclass(frozen=True, slots=True)
class TermParts:
    """What outlives a term."""

    settings: RouterSettings
    clock: Clock
    state: SharedState
    metrics: RouterMetrics
    index: PrefixIndex
    kv_watch: KvWatch
    tracer: Tracer = NO_TRACER


class TermServices:
    """The services of one term, wired together. Before the term begins they answer NotLeader.

    Life: run (a task of the owner's) -> aclose."""

    def __init__(
        self, parts: TermParts, settings: RouterSettings, manifest: Manifest | None, check: LeaderCheck
    ) -> None:
        """manifest: what a reload is compared with; None: there are no reloads."""
        self.controller = controller = Controller(settings, parts.clock, random.Random(), parts.index)
        recorder = MetricsRecorder(parts.metrics, controller, len(parts.kv_watch.addresses))
        spans = QueueSpans(parts.tracer)
        watch = AdapterWatch(controller.adapters, parts.metrics.adapters)
        self.event_loop = loop = EventLoop(
            controller, parts.clock, recorder, parts.kv_watch, check, spans, watch
        )
        self.live = live = RouterLiveSettings(controller, loop, settings)
        self.commands = OperatorCommands(
            controller, parts.clock, parts.kv_watch, check, live, loop.streams.senders, manifest
        )
        sign_of_life_seconds = settings.terms.sign_of_life_seconds
        self.sessions = SessionCalls(controller, loop, check, self.commands, sign_of_life_seconds)
        self.adapters = AdapterCalls(controller.adapters, loop, check, live, self.commands.until_heard)
        self.models = ModelCalls(controller.models, loop, check, manifest)

    async def run(self) -> None:
        """Does what is due until the term ends."""
        with suppress(NotLeader):
            await self.event_loop.run()

    async def aclose(self) -> None:
        """Ends the sessions, and the calls that wait. Apiservers keep what runs, and turn to the next
        leader."""
        self.event_loop.adapter_watch.calls.close()
        self.event_loop.model_watch.calls.close()
        self.event_loop.leftovers.close()
        await self.sessions.aclose()


class Manifests:
    """last: the manifest that this router uses; None: it has none."""

    def __init__(
        self, last: Manifest | None = None, read_again: Callable[[], Manifest] | None = None
    ) -> None:
        self.last, self._read_again = last, read_again

    def changed(self) -> Manifest | None:
        """Reads the manifest again. None: it is the same, or cannot be used."""
        if self._read_again is None:
            return None
        try:
            manifest = self._read_again()
        except ManifestError as error:
            _log.warning("the manifest is not read again: %s", error.message)
            return None
        if manifest == self.last:
            return None
        self.last = manifest
        return manifest


class LeaderTerm:
    """A TermHandler. `owner` owns its tasks; on_change is called when a term begins and ends."""

    def __init__(
        self,
        parts: TermParts,
        owner: TaskOwner,
        on_change: Callable[[bool], Awaitable[None]],
        manifests: Manifests,
    ) -> None:
        self._parts, self._settings, self._state = parts, parts.settings, parts.state
        self._owner, self._on_change, self._manifests = owner, on_change, manifests
        self._log_level = _log_level(manifests.last)  # that this process has
        self._term: Term | None = None
        self._saved: dict[StateKey, str] = {}  # what the shared state has, as far as this router knows
        self._tasks: list[asyncio.Task[Any]] = []
        self.begun = asyncio.Event()

    def open(self, leader_check: LeaderCheck) -> None:
        """Called once, before anything else."""
        self._leader_check = leader_check
        self._prepare()

    @property
    def controller(self) -> Controller:
        return self.services.controller

    def _prepare(self) -> None:
        self.services = TermServices(self._parts, self._settings, self._manifests.last, self._leader_check)

    def _read_again(self) -> None:
        """Applies what another leader has reloaded meanwhile."""
        manifest, settings = self._manifests.changed(), self._settings
        if manifest is not None:
            terms = self._settings.terms  # those need a restart
            settings = replace(RouterSettings.of(manifest), terms=terms, log_level=settings.log_level)
        if (level := _log_level(self._manifests.last)) != self._log_level:
            settings = replace(settings, log_level=level)
            set_log_level(level)
            self._log_level = level
        if manifest is not None or settings != self._settings:
            self._settings = settings
            self._prepare()

    async def begin(self, term: Term) -> None:
        times = self._settings.terms
        self._read_again()
        scheduler = await self._inherited(StateKey.SCHEDULER, _scheduler)
        adapters = await self._inherited(StateKey.ADAPTERS, _adapters)
        models = await self._inherited(StateKey.MODELS, _models)
        self.controller.take_over(scheduler, times.settle_seconds, adapters, term.epoch, models)
        self._term = term
        await self._on_change(True)
        # Last: they need the mandate, which is there as soon as this returns.
        self._tasks = [self._owner.spawn("state", self.services.run(), fatal=True)]
        self._tasks.append(self._owner.spawn("save", self._keep_saved(term), fatal=True))
        self.begun.set()

    async def end(self) -> None:
        """Saves the last decisions: nothing is decided any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._term is not None:
            await self._save_changes(self._term)
        self._term, self._tasks = None, []
        await self.services.aclose()
        self._keep_log_level(self.services.live.settings.log_level)
        self._prepare()
        await self._on_change(False)

    def _keep_log_level(self, level: str) -> None:
        """The log level belongs to the process, not to the term. level empty: no reload has set one."""
        self._settings = replace(self._settings, log_level=level)
        self._log_level = level or self._log_level

    async def _inherited(self, key: StateKey, parse: Callable[[Saved], _T]) -> _T | None:
        """Errors: StateUnavailable."""
        saved = await self._state.load(key)
        self._saved[key] = saved.text if saved else ""
        if saved is None or not saved.text:
            return None
        try:
            return parse(saved)
        except ValueError as error:
            _log.warning("what the last leader saved of its %s is not used: %s", key, error)
            return None

    async def _keep_saved(self, term: Term) -> None:
        """Saves what decisions have changed, at most once in save_seconds. What others share is now and then
        saved again, changed or not."""
        times, all_again_at = self._settings.terms, time.monotonic() + _ALL_AGAIN_SECONDS
        while True:
            self.services.event_loop.decided.clear()
            await self._save_changes(term)
            await asyncio.sleep(times.save_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(_ALL_AGAIN_SECONDS):
                    await self.services.event_loop.decided.wait()
            if times.shared and time.monotonic() >= all_again_at:
                self._saved.clear()
                all_again_at = time.monotonic() + _ALL_AGAIN_SECONDS

    async def _save_changes(self, term: Term) -> None:
        for key, text in self._texts():
            if text != self._saved.get(key) and await self._save(term, key, text):
                self._saved[key] = text

    def _texts(self) -> Iterator[tuple[StateKey, str]]:
        """Yields what is to be saved. A router that is alone schedules anew when it starts again."""
        if self._settings.terms.shared:
            yield StateKey.SCHEDULER, self.controller.snapshot().to_json()
        yield StateKey.ADAPTERS, self.controller.adapters.snapshot()
        yield StateKey.MODELS, self.controller.models.snapshot()

    async def _save(self, term: Term, key: StateKey, text: str) -> bool:
        try:
            return await self._state.save(term, text, key)
        except StateUnavailable:  # leadership tells it
            return False


def _scheduler(saved: Saved) -> SchedulerSnapshot:
    """Errors: ValueError."""
    return SchedulerSnapshot.from_json(saved.text).aged(saved.age_seconds)


def _adapters(saved: Saved) -> AdapterSnapshot:
    """Errors: ValueError."""
    return AdapterSnapshot.from_json(saved.text)


def _models(saved: Saved) -> ModelBookSnapshot:
    """Errors: ValueError."""
    return ModelBookSnapshot.from_json(saved.text)


def _log_level(manifest: Manifest | None) -> str:
    return manifest.observability.log_level if manifest else ""
