"""Every panel has data, and alerts come, in a real Prometheus that scrapes a running cluster under load."""

import asyncio
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from bench.cluster import Cluster
from llmserve.metrics.dashboards import DASHBOARDS, Dashboard
from tests.support.observed import ask_for, observed_cluster
from tests.support.pictures import chosen, picture
from tests.support.prometheus import Prometheus, prometheus

pytestmark = pytest.mark.timeout(180)
LOAD_SECONDS = 12.0
WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Observed:
    """load_ended: seconds, Unix. However long the tests take, rates are of a time under load."""

    load_ended: float
    cluster: Cluster
    prometheus: Prometheus


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    with (
        observed_cluster() as (cluster, page),
        prometheus(tmp_path_factory.mktemp("prometheus"), page) as found,
    ):
        asyncio.run(ask_for(cluster, LOAD_SECONDS, crash="decode-1"))
        yield Observed(time.time(), cluster, found)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_every_panel_has_data(observed: Observed, dashboard: Dashboard) -> None:
    empty = {
        f"{panel.title} / {query.legend}: {query.expression}"
        for section in dashboard.sections
        for panel in section.panels
        for query in panel.queries
        if not _numbers(observed.prometheus.query(chosen(query.expression, "30s"), observed.load_ended))
    }
    assert not empty


def _numbers(rows: list[dict[str, Any]]) -> list[float]:
    values = (float(row["value"][1]) for row in rows)
    return [value for value in values if not math.isnan(value)]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_its_picture_has_no_empty_panel(observed: Observed, dashboard: Dashboard) -> None:
    assert "no data" not in picture(observed.prometheus, dashboard, LOAD_SECONDS + 10, observed.load_ended)


def test_each_sample_says_whose_it_is(observed: Observed) -> None:
    rows = observed.prometheus.query("count by (cluster, component, process) (cluster_process_up)")
    assert {row["metric"]["process"] for row in rows} >= {"router-0", "kvmanager-0", "prefill-0", "decode-0"}
    assert {row["metric"]["cluster"] for row in rows} == {"observed"}
    assert not observed.prometheus.query('{exported_process!=""}')


def test_tiers_hold_and_give_back(observed: Observed) -> None:
    for expression in ("kv_store_hit_blocks_total", "kv_store_store_bytes_total", "kv_store_blocks"):
        rows = observed.prometheus.query(f'{expression}{{tier="memory"}}')
        assert float(rows[0]["value"][1]) > 0, expression


def test_the_heavier_tenant_is_served_more(observed: Observed) -> None:
    rows = observed.prometheus.query("router_tenant_served_tokens_total")
    served = {row["metric"]["tenant"]: float(row["value"][1]) for row in rows}
    assert served["gold"] > 1.5 * served["basic"] > 0


def test_alerts_of_the_faults_that_were_caused_came(observed: Observed) -> None:
    """Of the history: what fired while the load was there. They end with it."""
    assert observed.prometheus.fired() >= {
        "LLMServeQueueOverLimit",
        "LLMServeRefusing",
        "LLMServeProcessDown",
    }
    assert "LLMServeOrphanedKv" not in observed.prometheus.alerts()


def test_a_router_that_goes_away_is_an_alert(observed: Observed) -> None:
    """The last one: it stops the router's process."""
    pid = observed.cluster.pid("router-0")

    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + WAIT_SECONDS
    while "LLMServeRouterAway" not in observed.prometheus.alerts():
        assert time.monotonic() < until, observed.prometheus.alerts()
        time.sleep(0.3)
