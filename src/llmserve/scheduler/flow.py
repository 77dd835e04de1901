"""The queue of one tenant."""

from bisect import bisect_left, insort

from llmserve.core.ids import TenantId
from llmserve.scheduler.request import Waiting


class Flow:
    """The waiting requests of one tenant, always sorted as they are to be served."""

    def __init__(self, tenant: TenantId) -> None:
        self.tenant = tenant
        self._sorted: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def __getitem__(self, index: int) -> Waiting:
        return self._sorted[index]

    def __repr__(self) -> str:
        return f"<Flow {self.tenant} waiting={len(self)}>"

    def add(self, waiting: Waiting) -> None:
        insort(self._sorted, waiting)

    def remove(self, waiting: Waiting) -> None:
        index = bisect_left(self._sorted, waiting)
        assert self._sorted[index] is waiting
        del self._sorted[index]
