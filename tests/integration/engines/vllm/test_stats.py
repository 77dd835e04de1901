"""Reports of hand-overs on their way from the worker's process through vLLM's statistics to the front."""

from dataclasses import astuple
from types import SimpleNamespace

import msgspec

from llmserve.core.request import HandoverReport
from llmserve.engines.vllm.stats import EngineStats


def test_a_report_is_the_same_after_its_way_between_processes() -> None:
    report = HandoverReport("tcp", 4096, 0.25, ("nixl: too slow",), pushed=True, ended_unix=1.5)
    row = msgspec.msgpack.decode(msgspec.msgpack.encode(["request-1", *astuple(report)]))
    stats = SimpleNamespace(
        num_running_reqs=1,
        num_waiting_reqs=0,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=0.0,
        kv_connector_stats={"pulls": [row]},
    )
    leases, reports = EngineStats().record(stats)
    assert (leases, reports) == ([], {"request-1": report})
