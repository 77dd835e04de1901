"""vLLM's worker for CPUs with one thread for gloo, and without a table of what it has computed.

vLLM makes 14 groups of processes for each rank, also where there is only one. gloo gives each group a thread
and a port of its own. The thread wakes a hundred times a second: together they take 1% of the core that
computes, as long as the engine lives. Here all groups of a process share one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import Store, distributed_c10d
from vllm.v1.worker.cpu_worker import CPUWorker


@contextmanager
def one_gloo_device() -> Iterator[None]:
    """All groups of gloo that are made meanwhile share one device, which is its thread and its port."""
    stock = distributed_c10d.ProcessGroupGloo
    device = stock.create_default_device()

    class SharingGloo(distributed_c10d.ProcessGroupGloo):
        def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
            options: Any = stock._Options()
            options._devices, options._timeout = [device], timeout
            super().__init__(store, rank, size, options)

    setattr(distributed_c10d, stock.__name__, SharingGloo)  # torch has no setting for it
    try:
        yield
    finally:
        setattr(distributed_c10d, stock.__name__, stock)


class CpuWorker(CPUWorker):
    """AsyncEngineArgs.worker_cls of engines on CPUs."""

    def init_device(self) -> None:
        with one_gloo_device():
            super().init_device()

    def profile(self, is_start: bool = True, profile_prefix: str | None = None, **limits: Any) -> None:
        super().profile(is_start, profile_prefix, **limits)
        if is_start:
            self.profiler.dump_cpu_time_total = False  # vLLM has no setting for it
