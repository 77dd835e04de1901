"""A system prompt that all requests share makes no worker hot. The true controller over simulated engines, in
virtual time."""

from dataclasses import replace

import pytest

from bench.placement.routing import cluster, computed_tokens, largest_share, shared_prefixes, simulated
from llmserve.core.ids import WorkerId


@pytest.mark.parametrize(
    ("disaggregate", "per_second", "seed"),
    [("auto", 20.0, 193), ("always", 20.0, 751), ("never", 2.0, 906)],
)
def test_the_largest_share_is_at_most_one_and_a_half_times_the_fair_one(
    disaggregate: str, per_second: float, seed: int
) -> None:
    """Seeds among the worst of many: with few requests chance adds to what the router allows."""
    requests = shared_prefixes(240, per_second, prompts=1, tokens=512, seed=seed)
    report = simulated(cluster(disaggregate=disaggregate), requests, seed)
    assert largest_share(report, "decode") <= 1.5
    if disaggregate == "always":
        assert largest_share(report, "prefill") <= 1.5


def test_a_slower_worker_gets_less() -> None:
    slower = replace(cluster(disaggregate="always"), speeds={WorkerId("prefill-3"): 0.25})
    report = simulated(slower, shared_prefixes(120, 60.0, prompts=1, tokens=512, seed=3))
    placed = {line.worker: line.requests for line in report.workers}
    others = sum(placed[f"prefill-{number}"] for number in range(3)) / 3
    assert placed["prefill-3"] < 0.6 * others


def test_what_is_cached_is_found_again() -> None:
    requests = shared_prefixes(120, 10.0, prompts=12, tokens=512)
    routings = ("kv_aware", "least_loaded", "round_robin")
    aware, *others = (computed_tokens(simulated(cluster(200, routing=name), requests)) for name in routings)
    assert aware < 0.7 * min(others)
