"""The state of a term: made before it begins, told by the state of the last one, dropped when it ends."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from llmserve.core.clock import Clock
from llmserve.core.errors import NotLeader, StateUnavailable
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.router import RouterMetrics
from llmserve.router.mandate import Mandate
from llmserve.router.recorder import Recorder
from llmserve.router.service import RouterService
from llmserve.router.settings import RouterSettings, build_controller
from llmserve.router.state.base import SharedState, Term
from llmserve.scheduler.snapshot import SchedulerSnapshot

_log = logging.getLogger(__name__)


class RouterOffice:
    """An Office of leadership.py. Tasks belong to `owner`; on_change is told when a term begins and ends."""

    def __init__(
        self,
        settings: RouterSettings,
        clock: Clock,
        state: SharedState,
        metrics: RouterMetrics,
        owner: TaskOwner,
        on_change: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._settings, self._clock, self._state = settings, clock, state
        self._metrics, self._owner, self._on_change = metrics, owner, on_change
        self._term: Term | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self.begun = asyncio.Event()

    def open(self, mandate: Mandate) -> None:
        """Once, before anything else."""
        self._mandate = mandate
        self._prepare()

    def _prepare(self) -> None:
        self.controller = build_controller(self._settings, self._clock, random.Random())
        recorder = Recorder(self._metrics, self.controller)
        self.service = RouterService(self.controller, self._settings, self._clock, recorder, self._mandate)

    async def begin(self, term: Term) -> None:
        times = self._settings.terms
        self.controller.take_over(await self._inherited(), times.settle_seconds)
        self._term = term
        await self._on_change(True)
        # Last: they need the mandate, which is there as soon as this returns.
        self._tasks = [self._owner.spawn("state", self._run(), fatal=True)]
        if times.shared:
            self._tasks.append(self._owner.spawn("save", self._keep_saved(term), fatal=True))
        self.begun.set()

    async def end(self) -> None:
        """What was decided last is saved first: nothing is decided any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._term is not None and self._settings.terms.shared:
            await self._save(self._term, self.controller.snapshot().to_json())
        self._term, self._tasks = None, []
        await self.service.aclose()
        self._prepare()
        await self._on_change(False)

    async def _run(self) -> None:
        with suppress(NotLeader):
            await self.service.run()

    async def _inherited(self) -> SchedulerSnapshot | None:
        """Errors: StateUnavailable."""
        saved = await self._state.load()
        if saved is None:
            return None
        try:
            return SchedulerSnapshot.from_json(saved.text).aged(saved.age_seconds)
        except ValueError as error:
            _log.warning("what the last leader saved is not used: %s", error)
            return None

    async def _keep_saved(self, term: Term) -> None:
        last = ""
        while True:
            text = self.controller.snapshot().to_json()
            if text != last and await self._save(term, text):
                last = text
            await asyncio.sleep(self._settings.terms.save_seconds)

    async def _save(self, term: Term, text: str) -> bool:
        try:
            return await self._state.save(term, text)
        except StateUnavailable:  # leadership tells it
            return False


class CurrentService:
    """Servicer of the Router: whichever service is current when a call comes in answers it."""

    def __init__(self, office: RouterOffice) -> None:
        self._office = office

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        return lambda request, context: getattr(self._office.service, name)(request, context)
