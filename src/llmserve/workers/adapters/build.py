"""Builds the parts of a worker that adapters need."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmserve.core.tasks import TaskOwner
from llmserve.engines.base import Engine
from llmserve.metrics.worker import AdapterMetrics
from llmserve.workers.adapters.files import AdapterStore, HostFiles
from llmserve.workers.adapters.legs import EngineLegs
from llmserve.workers.adapters.orders import AdapterOrders
from llmserve.workers.adapters.pool import AdapterPool
from llmserve.workers.adapters.slots import DeviceSlots

# The router places requests of no more adapters than there are slots, so legs wait only while one changes.
PATIENCE_SECONDS = 2.0
_THREADS = 4
_FETCHERS = 4  # two for what the router orders, the others for legs whose files were lost


@dataclass(frozen=True, slots=True)
class WorkerAdapters:
    """pool: to be closed before `tasks` are. files: to be closed after them."""

    legs: EngineLegs
    orders: AdapterOrders
    pool: AdapterPool
    files: HostFiles


def build_adapters(
    engine: Engine,
    slots: int,
    store: AdapterStore,
    tasks: TaskOwner,
    metrics: AdapterMetrics,
    on_change: Callable[[], None],
) -> WorkerAdapters:
    """slots: of the engine; 0: it runs no adapters. on_change: as in AdapterOrders."""
    metrics.slots.set(slots)
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="adapters")
    files = HostFiles(store, threads, ThreadPoolExecutor(_FETCHERS, thread_name_prefix="adapter-fetch"))
    pool = AdapterPool(engine, DeviceSlots(slots, PATIENCE_SECONDS), files, tasks, metrics, on_change)
    orders = AdapterOrders(pool, files, tasks, metrics, on_change)
    return WorkerAdapters(EngineLegs(engine, pool, tasks), orders, pool, files)
