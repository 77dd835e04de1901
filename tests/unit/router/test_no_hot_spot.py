"""A system prompt that all requests share makes no worker hot. The true controller over simulated engines, in
virtual time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.routing import shared_prefixes
from bench.simulation import Engines, Result, Simulation
from llmserve.core.outcome import WorkerRole
from llmserve.router.plan import Disaggregate
from llmserve.router.settings import RouterSettings

_WORKERS, _REQUESTS = 4, 120


def _simulated(mode: Disaggregate, per_second: float, seed: int, speeds: tuple[float, ...] = ()) -> Result:
    arrivals = shared_prefixes(_REQUESTS, per_second, prompts=1, tokens=512, seed=seed)
    router = RouterSettings(disaggregate=mode, expiry_seconds=1e9)
    return Simulation(Engines(_WORKERS, _WORKERS, speeds=speeds), router, seed).run(arrivals)


@given(st.sampled_from(Disaggregate), st.sampled_from((2.0, 20.0, 100.0)), st.integers(0, 1000))
@settings(max_examples=6, deadline=None, database=None)
def test_the_largest_share_is_at_most_one_and_a_half_times_the_fair_one(
    mode: Disaggregate, per_second: float, seed: int
) -> None:
    result = _simulated(mode, per_second, seed)
    assert result.largest_share(WorkerRole.DECODE, _WORKERS) <= 1.5
    if mode is Disaggregate.ALWAYS:
        assert result.largest_share(WorkerRole.PREFILL, _WORKERS) <= 1.5


def test_a_slower_worker_gets_less() -> None:
    speeds = (1.0, 1.0, 1.0, 0.25, 1.0, 1.0, 1.0, 1.0)
    result = _simulated(Disaggregate.ALWAYS, 60.0, 3, speeds)
    others = sum(result.placed[f"prefill-{number}"] for number in range(3)) / 3
    assert result.placed["prefill-3"] < 0.6 * others


@pytest.mark.parametrize("routing", ["round_robin", "least_loaded"])
def test_what_is_cached_is_found_again(routing: str) -> None:
    arrivals = shared_prefixes(_REQUESTS, 10.0, prompts=12, tokens=512)
    engines = Engines(_WORKERS, _WORKERS, blocks=200)
    aware, unaware = (
        Simulation(engines, RouterSettings(routing=name, expiry_seconds=1e9)).run(arrivals)  # type: ignore[arg-type]
        for name in ("kv_aware", routing)
    )
    assert aware.computed_tokens < 0.7 * unaware.computed_tokens
