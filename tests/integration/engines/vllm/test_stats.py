"""Reports of hand-overs on their way from the worker's process through vLLM's statistics to the front."""

from dataclasses import astuple
from types import SimpleNamespace

import msgspec
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from llmserve.core.request import HandoverReport
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.engines.vllm.args import CONNECTOR
from llmserve.engines.vllm.stats import EngineStats


def test_a_report_is_the_same_after_its_way_between_processes() -> None:
    report = HandoverReport("tcp", 4096, 0.25, ("nixl: too slow",), pushed=True, ended_unix=1.5)
    row = msgspec.msgpack.decode(msgspec.msgpack.encode(["request-1", *astuple(report)]))
    leases, reports = EngineStats().record(_step(kv_connector_stats={"pulls": [row]}))
    assert (leases, reports) == ([], {"request-1": report})


def test_speculation_adds_up_and_the_last_gains_stand() -> None:
    """As the scheduler puts them beside a store's connector, after their way between processes."""
    stats = EngineStats()
    rows = msgspec.msgpack.decode(msgspec.msgpack.encode([[1, True, 1.25, 40]]))
    step = _step(spec_decoding_stats=SpecDecodingStats.new(3))
    step.spec_decoding_stats.observe_draft(num_draft_tokens=3, num_accepted_tokens=2)
    stats.record(step)
    stats.record(_step(kv_connector_stats={CONNECTOR: {"speculation": rows}}))
    stats.record(step)
    assert stats.load().speculation == SpeculationReport(2, 6, 4, (BatchGain(1, True, 1.25, 40),))


def test_an_engine_that_does_not_speculate_reports_nothing_of_it() -> None:
    stats = EngineStats()
    stats.record(_step())
    assert stats.load().speculation is None


def _step(**changed: object) -> SimpleNamespace:
    plain = {"spec_decoding_stats": None, "kv_connector_stats": None, "kv_cache_usage": 0.0}
    numbers = dict.fromkeys(("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs"), 0)
    return SimpleNamespace(**{**numbers, **plain, **changed})
