"""Has the models that the router orders: fetches each, checks that there is room for it, starts its engines,
and ends them. One task works on each model, so that a long download delays no other."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from llmserve.config.plan_types import ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import ModelOrder, ModelReport, ModelState, entry_of, parse_entry
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.core.tasks import TaskOwner
from llmserve.runner.models.memory import NOTHING, NeededMemory

_log = logging.getLogger(__name__)

# A router that does not answer holds up the models of the manifest no longer.
_FIRST_ORDERS_SECONDS = 5.0
_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """directory: of the prepared model. workers: its engines' processes. needed: their memory."""

    directory: str
    workers: tuple[ProcessSpec, ...]
    needed: NeededMemory = NOTHING


class ModelProcesses(Protocol):
    """Does what the manager decides (processes.py). Errors of the first three: LLMServeError."""

    async def prepare(self, manifest: Manifest, on_progress: Callable[[str], None]) -> str:
        """Fetches a model, and returns its directory. manifest: of this model alone, as all below."""

    async def plan(self, manifest: Manifest, directory: str, swap: Sequence[str]) -> PlannedModel:
        """Finds a place for its engines. swap: names of the workers that leave before."""

    async def start(
        self,
        order: ModelOrder,
        manifest: Manifest,
        planned: PlannedModel,
        on_progress: Callable[[str], None],
    ) -> None:
        """Returns when all of its engines are ready. on_progress: may be told what keeps them from that. The
        caller stops those of a failed start."""

    async def stop(self, workers: Sequence[str]) -> None:
        """Lets them drain, and returns when nothing of them is left. Unknown ones are stopped already. After
        an LLMServeError, it is called again."""

    async def check_room(
        self, name: str, needed: NeededMemory, leaving: NeededMemory, coming: Sequence[NeededMemory]
    ) -> None:
        """Errors: StartFailed when it does not fit."""


@dataclass(eq=False, slots=True)
class HeldModel:
    """A model that is here, or is on its way in or out. is_loaded: the router asks for more than a pull.
    may_start: the router lets its engines start. is_starting: they take their memory now. begun: its engines
    are asked for, or its pull is over. task: works on it; None: somebody else starts its engines."""

    order: ModelOrder
    report: ModelReport
    workers: tuple[str, ...] = ()
    needed: NeededMemory = NOTHING
    is_loaded: asyncio.Event = field(default_factory=asyncio.Event)
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    leaving: bool = False
    is_starting: bool = False

    def follow(self, order: ModelOrder) -> None:
        """Takes in an order for the same model."""
        self.order, self.report = order, replace(self.report, number=order.number)
        if not order.pull:
            self.is_loaded.set()
        if order.may_start:
            self.may_start.set()

    async def until_begun(self) -> None:
        """Returns also when it never begins, because it has failed or leaves."""
        if self.task is None:
            return
        begun = asyncio.ensure_future(self.begun.wait())
        try:
            await asyncio.wait([begun, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()


class ModelManager:
    """manifest: that of the cluster. first: models of it with their workers, which somebody else starts.
    owner: of the tasks. on_change: is called when a report has changed."""

    def __init__(
        self,
        manifest: Manifest,
        first: Mapping[str, Sequence[str]],
        processes: ModelProcesses,
        owner: TaskOwner,
        on_change: Callable[[], None],
    ) -> None:
        self._manifest, self._processes, self._on_change = manifest, processes, on_change
        self._owner = owner
        self._orders: Sequence[ModelOrder] = ()
        self._has_orders = asyncio.Event()
        self._held: dict[str, HeldModel] = {}
        for name, workers in first.items():
            order = ModelOrder(0, name, entry_of(manifest.entry(name)), declared=True)
            self._held[name] = HeldModel(order, ModelReport(0, ModelState.STARTING), tuple(workers))

    def reports(self) -> list[ModelReport]:
        return [held.report for held in self._held.values() if held.order.number]

    async def wants(self, model: str) -> bool:
        """Returns whether a model of the manifest is to be started: operators may have unloaded it in an
        earlier run. Waits for the first orders, but not long."""
        try:
            async with asyncio.timeout(_FIRST_ORDERS_SECONDS):
                await self._has_orders.wait()
        except TimeoutError:
            return True
        return model in self._held and not self._held[model].leaving

    async def until_begun(self) -> None:
        """Returns when the first orders are here, and the engines of all their models are asked for, or will
        not be."""
        await self._has_orders.wait()
        for held in list(self._held.values()):
            await held.until_begun()

    def became_ready(self, model: str, directory: str, needed: NeededMemory) -> None:
        """All workers of a model of the manifest are ready."""
        if (held := self._held.get(model)) is not None:
            held.needed = needed
            self._say(held, ModelState.READY, directory=directory)

    def resume(self, order: ModelOrder, planned: PlannedModel, *, was_ready: bool) -> None:
        """Called before the first orders for a model whose engines an earlier manager has started. They get
        what the manifest says now. was_ready: they have answered, so that what goes wrong with that ends none
        of them: it is tried again. Others fail as those of a load."""
        report = ModelReport(order.number, ModelState.STARTING, directory=planned.directory)
        held = HeldModel(order, report, tuple(worker.name for worker in planned.workers))
        held.follow(order)
        self._held[order.name] = held
        starting = self._resume(held, planned) if was_ready else self._load(held, planned)
        held.task = self._owner.spawn(f"resume.{order.name}", starting)

    def names(self) -> list[str]:
        """Returns the models that are there, or come."""
        return [
            name
            for name, held in self._held.items()
            if not held.leaving and not held.order.pull and held.report.state is not ModelState.FAILED
        ]

    def apply(self, orders: Sequence[ModelOrder]) -> None:
        """orders: all of them."""
        self._orders = orders
        wanted = {order.name: order for order in orders}
        for name, held in list(self._held.items()):
            order = wanted.get(name)
            if held.leaving:
                continue
            if order is None or not _is_same(held.order, order):
                self._leave(held)
                continue
            held.follow(order)
        for name, order in wanted.items():
            if name not in self._held:
                self._begin(order)
        self._has_orders.set()
        self._on_change()

    # -- in

    def _begin(self, order: ModelOrder) -> None:
        held = HeldModel(order, ModelReport(order.number, ModelState.FETCHING))
        held.follow(order)
        self._held[order.name] = held
        held.task = self._owner.spawn(f"load.{order.name}", self._load(held))

    async def _load(self, held: HeldModel, planned: PlannedModel | None = None) -> None:
        """planned: its engines may start already."""
        try:
            await self._start(held, planned or await self._prepare(held))
        except LLMServeError as error:
            await self._failed(held, error)
        except Exception as error:
            _log.exception("model %s: the load failed", held.order.name)
            await self._failed(held, StartFailed(f"the load failed: {error!r}"))
        finally:
            held.is_starting = False

    async def _prepare(self, held: HeldModel) -> PlannedModel:
        """Returns when its engines may start. Errors: LLMServeError."""
        name, manifest = held.order.name, self.alone(held.order)
        self._say(held, ModelState.FETCHING, "looking for it")
        directory = await self._processes.prepare(
            manifest, lambda text: self._say(held, ModelState.FETCHING, text)
        )
        if held.order.pull:
            self._say_begun(held, ModelState.FETCHED, directory=directory)
            await held.is_loaded.wait()
        swapped = self._held.get(held.order.swap)
        leaving = swapped.workers if swapped else ()
        planned = await self._processes.plan(manifest, directory, leaving)
        coming = [one.needed for one in self._held.values() if one.is_starting]
        gives = swapped.needed if swapped else NOTHING
        held.needed, held.is_starting = planned.needed, True
        await self._processes.check_room(name, planned.needed, gives, coming)
        held.workers = tuple(worker.name for worker in planned.workers)
        self._say(held, ModelState.STARTING, _waits_for(held), directory)
        await held.may_start.wait()
        return planned

    async def _start(self, held: HeldModel, planned: PlannedModel) -> None:
        """Errors: LLMServeError."""
        self._say(held, ModelState.STARTING, "its engines start")
        manifest = self.alone(held.order)
        await self._processes.start(
            held.order, manifest, planned, lambda text: self._say_begun(held, ModelState.STARTING, text)
        )
        self._say(held, ModelState.READY)

    async def _resume(self, held: HeldModel, planned: PlannedModel) -> None:
        while True:
            try:
                return await self._start(held, planned)
            except LLMServeError as error:
                _log.warning("model %s: %s", held.order.name, error.message)
                self._say_begun(held, ModelState.STARTING, error.message)
            await asyncio.sleep(_AGAIN_SECONDS)

    def alone(self, order: ModelOrder) -> Manifest:
        """Returns the manifest of the cluster with this model alone. Errors: InvalidRequest."""
        named = {one.served_name: one for one in self._manifest.served} if order.declared else {}
        model = named.get(order.name) or parse_entry(order.entry)
        return self._manifest.model_copy(update={"models": (model,)})

    async def _failed(self, held: HeldModel, error: LLMServeError) -> None:
        _log.warning("model %s: %s", held.order.name, error.message)
        await self._stop(held)
        held.report = replace(
            held.report,
            state=ModelState.FAILED,
            detail="",
            error=type(error).__name__,
            message=error.message,
        )
        self._on_change()

    def _say(self, held: HeldModel, state: ModelState, detail: str = "", directory: str = "") -> None:
        report = replace(
            held.report, state=state, detail=detail, directory=directory or held.report.directory
        )
        if report != held.report:
            held.report = report
            self._on_change()

    def _say_begun(self, held: HeldModel, state: ModelState, detail: str = "", directory: str = "") -> None:
        held.begun.set()
        self._say(held, state, detail, directory)

    # -- out

    def _leave(self, held: HeldModel) -> None:
        held.leaving = True
        self._owner.spawn(f"unload.{held.order.name}", self._unload(held))

    async def _unload(self, held: HeldModel) -> None:
        if held.task is not None:
            held.task.cancel()
            await asyncio.wait([held.task])
        await self._stop(held)
        del self._held[held.order.name]
        self.apply(self._orders)

    async def _stop(self, held: HeldModel) -> None:
        """Tries until nothing of its engines is left: one that is forgotten would keep its GPU."""
        while True:
            try:
                return await self._processes.stop(held.workers)
            except LLMServeError as error:
                _log.warning("model %s: its engines have not ended: %s", held.order.name, error.message)
                self._say(held, held.report.state, f"its engines have not ended: {error.message}")
                await asyncio.sleep(_AGAIN_SECONDS)


def _is_same(one: ModelOrder, other: ModelOrder) -> bool:
    """Whether the order is that of the model that is here, perhaps by another router. Keys of a manifest that
    are live may have changed."""
    return one.entry == other.entry or (one.declared and other.declared)


def _waits_for(held: HeldModel) -> str:
    return "" if held.may_start.is_set() else f"until {held.order.swap} has left"
