"""A worker's adapters on a fake store and engine, in virtual time."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest_asyncio
from prometheus_client import CollectorRegistry

from llmserve.core.adapters import AdapterReport, AdapterTier
from llmserve.core.ids import AdapterDigest
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.worker import AdapterMetrics
from llmserve.workers.adapters.files import HostFiles
from llmserve.workers.adapters.legs import EngineLegs
from llmserve.workers.adapters.orders import AdapterOrders
from llmserve.workers.adapters.pool import AdapterPool
from llmserve.workers.adapters.slots import DeviceSlots
from tests.support.adapter_pool import FakeStore, InlineThreads, SlotEngine

SLOTS, PATIENCE = 2, 5.0


@dataclass
class Rig:
    """changes: how often the router was to hear of one."""

    tasks: TaskOwner
    engine: SlotEngine = field(default_factory=lambda: SlotEngine(SLOTS))
    store: FakeStore = field(default_factory=FakeStore)
    changes: int = 0

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        metrics = AdapterMetrics(self.registry)
        self.files = HostFiles(self.store, InlineThreads(), InlineThreads())
        self.pool = AdapterPool(
            self.engine,  # type: ignore[arg-type]
            DeviceSlots(SLOTS, PATIENCE),
            self.files,
            self.tasks,
            metrics,
            self._changed,
        )
        self.legs = EngineLegs(self.engine, self.pool, self.tasks)  # type: ignore[arg-type]
        self.orders = AdapterOrders(self.pool, self.files, self.tasks, metrics, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def serve(self, *names: str) -> None:
        for name in names:
            self.pool.serve(AdapterDigest(name), f"dir:/{name}", AdapterTier.SOURCE)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"worker_adapter_{name}", labels) or 0.0

    def reports(self) -> dict[int, AdapterReport]:
        return {report.number: report for report in self.orders.reports()}


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    tasks = TaskOwner("test")
    made = Rig(tasks)
    yield made
    made.pool.close()
    await tasks.aclose()
    await made.files.aclose()
    assert not made.store.held, "files are held for nobody"
