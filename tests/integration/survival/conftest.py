"""A cluster of real processes with simulated engines for each module, which notices soon that one hangs."""

from collections.abc import Iterator

import pytest

from bench.cluster import Cluster, running
from tests.support.simulated import simulated

HANG_SECONDS = 5.0


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """It has as many processes of each role as the module's REPLICAS say."""
    manifest = simulated("sim.yaml")
    manifest["spec"]["engine"]["hang_seconds"] = HANG_SECONDS
    local = {"hang_seconds": HANG_SECONDS}
    manifest["spec"]["deployment"] = {"replicas": request.module.REPLICAS, "local": local}
    with running(manifest) as started:
        yield started
