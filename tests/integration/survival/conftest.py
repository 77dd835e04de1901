"""A cluster of real processes with simulated engines for each module, which notices soon that one hangs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.cluster import Cluster, running

ROOT = Path(__file__).parents[3]
HANG_SECONDS = 5.0


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """It has as many processes of each role as the module's REPLICAS say."""
    manifest = yaml.safe_load((ROOT / "examples" / "sim.yaml").read_text())
    manifest["spec"]["engine"]["hang_seconds"] = HANG_SECONDS
    local = {"hang_seconds": HANG_SECONDS}
    manifest["spec"]["deployment"] = {"replicas": request.module.REPLICAS, "local": local}
    with running(manifest) as started:
        yield started
