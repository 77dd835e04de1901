"""What each worker is ordered to hold. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

from llmserve.core.adapters import AdapterOrder
from llmserve.core.ids import WorkerId


@dataclass(slots=True)
class _WorkerOrders:
    version: int
    by_number: dict[int, AdapterOrder] = field(default_factory=dict)
    unresolved: int = 0  # of them have no digest


class OrderBoard:
    """The version of a worker's orders changes with them, so that a heartbeat carries them only then. A known
    worker has a version even without orders: it may hold what an earlier router ordered."""

    def __init__(self) -> None:
        self._workers: dict[WorkerId, _WorkerOrders] = {}
        self._last_version = 0

    def begin(self, epoch: int) -> None:
        """A term begins: its versions differ from those of earlier ones. epoch: its number."""
        self._last_version = max(self._last_version, epoch)

    def follow(self, worker_ids: Collection[WorkerId]) -> None:
        """Takes in new workers, and forgets those that are not among these."""
        for worker_id in worker_ids:
            if worker_id not in self._workers:
                self._workers[worker_id] = _WorkerOrders(self._next_version())
        for worker_id in [known for known in self._workers if known not in worker_ids]:
            del self._workers[worker_id]

    def put(self, worker_id: WorkerId, number: int, order: AdapterOrder | None) -> None:
        """Sets what a worker is ordered under this number. order: None: nothing."""
        worker = self._workers[worker_id]
        before = worker.by_number.get(number)
        if before == order:
            return
        if order is None:
            del worker.by_number[number]
        else:
            worker.by_number[number] = order
        worker.unresolved += _is_unresolved(order) - _is_unresolved(before)
        worker.version = self._next_version()

    def given(self, worker_id: WorkerId, number: int) -> bool:
        worker = self._workers.get(worker_id)
        return worker is not None and number in worker.by_number

    def version(self, worker_id: WorkerId) -> int:
        """Returns the version of a worker's orders; 0: the worker is unknown."""
        worker = self._workers.get(worker_id)
        return worker.version if worker else 0

    def orders(self, worker_id: WorkerId) -> tuple[AdapterOrder, ...]:
        worker = self._workers.get(worker_id)
        return tuple(worker.by_number.values()) if worker else ()

    def unresolved(self, worker_id: WorkerId) -> int:
        """Returns how many digests the worker is ordered to compute."""
        worker = self._workers.get(worker_id)
        return worker.unresolved if worker else 0

    def _next_version(self) -> int:
        self._last_version += 1
        return self._last_version


def _is_unresolved(order: AdapterOrder | None) -> bool:
    return order is not None and not order.digest
