"""A decode worker runs whole requests, in a real cluster of simulated engines."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from bench.cluster import Cluster, running

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    manifest = yaml.safe_load((ROOT / "examples" / "sim.yaml").read_text())
    manifest["spec"]["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    manifest["spec"]["scheduling"] = {"disaggregate": "never"}
    with running(manifest) as started:
        yield started


def test_nothing_is_handed_over_and_nothing_is_said_of_it(cluster: Cluster) -> None:
    body = {"model": cluster.state()["model"], "prompt": list(range(300, 500)), "max_tokens": 4}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30).raise_for_status()
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert not [name for name in answer.headers if name.startswith("x-llmserve-")]
    samples = cluster.metrics("router-0")
    assert samples['router_placement_kinds_total{kind="single"}'] == 1
    assert samples["router_first_token_seconds_count"] == 1
    assert samples["router_predicted_first_token_seconds_count"] == 1
    assert cluster.metrics("decode-0")["kv_leased_blocks"] == 0
