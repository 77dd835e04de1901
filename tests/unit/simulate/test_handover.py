"""`transfer.mode: auto` on clusters in virtual time: it ends at the way that costs less there."""

from dataclasses import replace

import pytest

from llmserve.simulate.report import Goals, SimReport
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest
from tests.unit.simulate.conftest import MakeShape

_KV = Overrides(kv_bytes_per_token=131072.0, transfer_gbps=10.0)  # 0.1 ms a token
_PAIRS = {"deployment": {"replicas": {"prefill": 2, "decode": 2}}, "scheduling": {"disaggregate": "always"}}


def _simulate(shape: ClusterShape, requests: int = 120, seed: int = 1) -> SimReport:
    """Requests of 600 to 900 tokens, about half of what the prefill workers can do."""
    asked = [TracedRequest(0.8 * number, 600 + 131 * number % 300, 20) for number in range(requests)]
    simulation = Simulation(shape, asked, seed=seed)
    simulation.run()
    simulation.check_integrity()
    return simulation.report(Goals())


def _last_pushes(shape: ClusterShape) -> int:
    """Of the last 40 of 120 requests."""
    return round(120 * _simulate(shape).pushed - 80 * _simulate(shape, 80).pushed)


@pytest.fixture
def cluster(make_shape: MakeShape) -> ClusterShape:
    return make_shape(over=_KV, sim={"blocks": 4096}, **_PAIRS)


def test_where_a_push_takes_from_computing_it_ends_at_pull(cluster: ClusterShape) -> None:
    """As on CPU engines: what a push hides takes twice as long to copy beside the computing."""
    slowed = replace(cluster, push_seconds_per_token=0.0002)
    assert 0 < _simulate(slowed).pushed <= 0.2
    assert _last_pushes(slowed) <= 3


def test_where_a_push_hides_the_copy_it_ends_at_push(cluster: ClusterShape) -> None:
    assert _last_pushes(cluster) >= 37


def test_the_same_seed_chooses_the_same_ways(cluster: ClusterShape) -> None:
    assert _simulate(cluster, seed=5) == _simulate(cluster, seed=5)


@pytest.mark.parametrize(("mode", "pushed"), [("pull", 0.0), ("push", 1.0)])
def test_the_report_says_how_much_is_pushed(make_shape: MakeShape, mode: str, pushed: float) -> None:
    shape = make_shape(over=_KV, sim={"blocks": 4096}, transfer={"mode": mode}, **_PAIRS)
    assert _simulate(shape, 5).pushed == pushed
