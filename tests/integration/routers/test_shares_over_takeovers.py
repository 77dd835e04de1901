"""Whose turn it is, and what each tenant may use, when the leader is killed under load."""

import asyncio
import time

import pytest

from tests.integration.routers.conftest import Cluster

PER_SECOND = 8.0
BURST = 1.0 * PER_SECOND  # what one second without requests saves up
MORE = f"""
scheduling: {{weights: [{{tenant: gold, weight: 4}}]}}
budgets:
  max_requests_in_flight: 4
  tenants: [{{tenant: limited, max_requests_per_second: {PER_SECOND}}}]
"""
CLIENTS = 8
REQUEST_SECONDS = 0.02


async def test_four_to_one_holds(cluster: Cluster) -> None:
    apis = [cluster.apiserver(f"api-{index}", patience_seconds=60.0) for index in range(2)]
    until = time.monotonic() + 7.0
    clients = [
        asyncio.create_task(apis[index % 2].serve(tenant, REQUEST_SECONDS, until=until))
        for tenant in ("gold", "basic")
        for index in range(CLIENTS)
    ]
    await asyncio.sleep(2.0)
    cluster.routers.kill(await cluster.routers.leader())
    served = await asyncio.gather(*clients)
    gold, basic = sum(served[:CLIENTS]), sum(served[CLIENTS:])
    assert basic > 20, "too little to judge by"
    assert gold / basic == pytest.approx(4.0, rel=0.1)


async def test_a_rate_is_not_doubled(cluster: Cluster) -> None:
    api, routers = cluster.apiserver(patience_seconds=60.0), cluster.routers
    began, leader = time.monotonic(), await routers.leader()
    until = began + 6.0
    clients = [asyncio.create_task(api.serve("limited", 0.0, until=until)) for _ in range(CLIENTS)]
    await asyncio.sleep(1.5)
    assert routers.stop(leader) == 0  # followed at once: the burst would come twice
    placed = sum(await asyncio.gather(*clients))
    # Each client counts one that was placed after the end.
    assert placed <= BURST + PER_SECOND * (time.monotonic() - began) + 2
    assert placed >= PER_SECOND * 3
