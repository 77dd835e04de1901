"""The latest of vLLM's scheduler statistics, as an EngineLoad."""

from typing import Any

from llmserve.core.request import EngineLoad


class EngineStats:
    """record() with each step; load() when the router is told. Both cheap."""

    def __init__(self) -> None:
        self.total_blocks = 0
        self._load = EngineLoad()

    def record(self, stats: Any) -> None:
        """stats: vllm.v1.metrics.stats.SchedulerStats."""
        load = self._load
        load.running_requests = stats.num_running_reqs
        load.waiting_requests = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        load.used_blocks = round(stats.kv_cache_usage * self.total_blocks)
        for name, value in (stats.kv_connector_stats or {}).items():
            if hasattr(load, name):
                setattr(load, name, value)

    def load(self) -> EngineLoad:
        return self._load
