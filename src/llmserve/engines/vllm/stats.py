"""The latest of vLLM's scheduler statistics, as an EngineLoad and as lease changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.core.ids import LeaseId
from llmserve.core.lease import LeaseChange, LeaseState
from llmserve.core.request import EngineLoad, HandoverReport, PairStatus
from llmserve.engines.vllm.args import CONNECTOR

_FROM_CONNECTOR = (
    "leased_blocks",
    "orphan_blocks",
    "transferred_bytes",
    "transfer_failures",
    "last_transport",
)


class EngineStats:
    """record() with each step; load() when the router is told. Both cheap."""

    def __init__(self) -> None:
        self.total_blocks = 0
        self.came_to_rest = False  # with the last step: nothing runs, and that or what is held is new
        self._load = EngineLoad()

    def record(self, stats: Any) -> tuple[list[LeaseChange], dict[str, HandoverReport]]:
        """stats: vllm.v1.metrics.stats.SchedulerStats. Returns the lease changes that it carries, and the
        pulls that ended, by request."""
        load = self._load
        before = _activity(load)
        load.running_requests = stats.num_running_reqs
        load.waiting_requests = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        load.used_blocks = round(stats.kv_cache_usage * self.total_blocks)
        connector = _handover(stats.kv_connector_stats or {})
        for name in _FROM_CONNECTOR:
            if name in connector:
                setattr(load, name, connector[name])
        is_idle = not (load.running_requests or load.waiting_requests)
        self.came_to_rest = is_idle and _activity(load) != before
        leases = [
            LeaseChange(LeaseId(lease_id), LeaseState(state), blocks, remaining)
            for lease_id, state, blocks, remaining in connector.get("lease_events", ())
        ]
        reports = {request_id: _report(*told) for request_id, *told in connector.get("pulls", ())}
        return leases, reports

    def record_pairs(self, pairs: Sequence[PairStatus]) -> None:
        self._load.pairs = pairs

    def load(self) -> EngineLoad:
        return self._load


def _activity(load: EngineLoad) -> tuple[int, ...]:
    return load.running_requests, load.waiting_requests, load.used_blocks, load.leased_blocks


def _report(
    transport: str,
    size: int,
    seconds: float,
    fallbacks: Sequence[str],
    reason: str,
    pushed: bool,
    ended_unix: float,
) -> HandoverReport:
    brought_by = "" if reason else transport
    return HandoverReport(brought_by, size, seconds, tuple(fallbacks), reason, pushed, ended_unix)


def _handover(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the store beside it, vLLM tells the statistics of each connector under its name."""
    mine = stats.get(CONNECTOR, stats)
    return mine if isinstance(mine, Mapping) else mine.data
