"""What the worker side reports with each engine step: the state of leases and transfers.

vLLM carries it in the scheduler's statistics to the front process. Totals and gauges, not
increments, so that losing a step loses nothing; lease changes are increments and are queued until
taken by a step.
"""

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

_SUMMED = ("transferred_bytes", "transfer_failures")


@dataclass
class HandoverStats(KVConnectorStats):
    """data: leased_blocks, orphan_blocks, transferred_bytes, transfer_failures (int),
    last_transport (str), lease_events (list of [lease_id, state, blocks, remaining_seconds]), pulls (list
    of [request_id, transport, bytes, seconds, fallbacks, reason, pushed, ended_unix])."""

    def aggregate(self, other: KVConnectorStats) -> "HandoverStats":
        """Over tensor-parallel ranks. Each rank pins the same blocks: leases are not added up. A pull is
        reported once for each rank; the last report counts."""
        mine, theirs = self.data, other.data
        summed = {key: mine.get(key, 0) + theirs.get(key, 0) for key in _SUMMED}
        worst = {key: max(mine.get(key, 0), theirs.get(key, 0)) for key in ("leased_blocks", "orphan_blocks")}
        pulls = [*mine.get("pulls", ()), *theirs.get("pulls", ())]
        return HandoverStats(data={**theirs, **mine, **summed, **worst, "pulls": pulls})

    def reduce(self) -> dict[str, int | float]:
        return {key: value for key, value in self.data.items() if isinstance(value, int | float)}

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def is_empty(self) -> bool:
        return not self.data

    def to_dict(self) -> dict[str, Any]:
        return self.data


class NoVllmMetrics(KVConnectorPromMetrics):
    """Records nothing: the worker makes metrics of HandoverStats (metrics/worker.py). With another connector
    beside ours, vLLM demands that each has an object for it."""

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        pass
