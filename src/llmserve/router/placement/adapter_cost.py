"""Predicted seconds until a worker has the adapter of a request in a slot. Pure."""

from collections.abc import Set
from typing import NamedTuple

from llmserve.core.adapters import AdapterReport, AdapterTier
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.workers.adapter_loads import AdapterLoads
from llmserve.router.workers.worker import ClusterMember


class AdapterCost(NamedTuple):
    """load: seconds until the version is in a slot. spread: seconds that are added so that versions stay at
    their homes, and that no version makes a worker hot."""

    load: float = 0.0
    spread: float = 0.0


_AWAY = 0.5  # of the time of a load: what the version that it displaces will cost
NO_ADAPTER = AdapterCost()


class AdapterForecast:
    """Predicts the cost of an adapter for one request at the time `now`. homes: of its version, in all
    groups. crowded: workers that have had more than their share."""

    def __init__(
        self,
        adapter: AdapterDigest,
        loads: AdapterLoads,
        homes: Set[WorkerId],
        crowded: Set[WorkerId],
        now: float,
    ) -> None:
        self._adapter, self._loads = adapter, loads
        self._homes, self._crowded, self._now = homes, crowded, now

    def at(self, member: ClusterMember) -> AdapterCost:
        """A load away from home counts more: it takes the place of a version whose home this is, and which
        has to be loaded again. A crowded worker is nobody's home, and is judged as if it had the version on
        disk only."""
        report = member.adapters.get(self._adapter)
        placed = self._adapter in member.slots.adapters
        load = self._placed_load(member) if placed else self._loads.seconds(report)
        name = member.spec.worker_id
        if name in self._crowded:
            return AdapterCost(load, max(0.0, (1 + _AWAY) * self._loads.seconds(_on_disk(report)) - load))
        return AdapterCost(load, 0.0 if placed or name in self._homes else _AWAY * load)

    def _placed_load(self, member: ClusterMember) -> float:
        """What is left of the load that an earlier request began."""
        return max(0.0, member.slots.adapters.ready_at(self._adapter) - self._now)


def _on_disk(report: AdapterReport | None) -> AdapterReport:
    return AdapterReport(0, tier=AdapterTier.DISK, size_bytes=report.size_bytes if report else 0)
