"""A system prompt that all requests share makes no worker hot. The true controller over simulated engines, in
virtual time."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.routing import cluster, computed_tokens, largest_share, shared_prefixes, simulated
from llmserve.core.ids import WorkerId
from llmserve.router.plan import Disaggregate


@given(st.sampled_from(Disaggregate), st.sampled_from((2.0, 20.0, 100.0)), st.integers(0, 1000))
@settings(max_examples=5, deadline=None, database=None)
def test_the_largest_share_is_at_most_one_and_a_half_times_the_fair_one(
    mode: Disaggregate, per_second: float, seed: int
) -> None:
    requests = shared_prefixes(100, per_second, prompts=1, tokens=512, seed=seed)
    report = simulated(cluster(disaggregate=mode), requests, seed)
    assert largest_share(report, "decode") <= 1.5
    if mode is Disaggregate.ALWAYS:
        assert largest_share(report, "prefill") <= 1.5


def test_a_slower_worker_gets_less() -> None:
    slower = replace(cluster(disaggregate="always"), speeds={WorkerId("prefill-3"): 0.25})
    report = simulated(slower, shared_prefixes(120, 60.0, prompts=1, tokens=512, seed=3))
    placed = {line.worker: line.requests for line in report.workers}
    others = sum(placed[f"prefill-{number}"] for number in range(3)) / 3
    assert placed["prefill-3"] < 0.6 * others


@pytest.mark.parametrize("routing", ["round_robin", "least_loaded"])
def test_what_is_cached_is_found_again(routing: str) -> None:
    requests = shared_prefixes(120, 10.0, prompts=12, tokens=512)
    aware, unaware = (simulated(cluster(200, routing=name), requests) for name in ("kv_aware", routing))
    assert computed_tokens(aware) < 0.7 * computed_tokens(unaware)
