"""The dashboards are what the code says, of metrics that there are."""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.metrics.cluster import CertificateMetrics, ClusterMetrics
from llmserve.metrics.dashboards import DASHBOARDS, rule_groups
from llmserve.metrics.dashboards.panels import Dashboard, Panel, to_json
from llmserve.metrics.generate import panels_markdown
from llmserve.metrics.kvmanager import KVManagerMetrics
from llmserve.metrics.router import RouterMetrics
from llmserve.metrics.worker import WorkerMetrics

ROOT = Path(__file__).parents[3]
DEPLOY, DOCS = ROOT / "deploy", ROOT / "docs"
ROLES = (ApiserverMetrics, RouterMetrics, WorkerMetrics, KVManagerMetrics, ClusterMetrics, CertificateMetrics)
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def _defined() -> set[str]:
    """Names of all series that the roles may have."""
    names = set()
    for role in ROLES:
        registry = CollectorRegistry()
        role(registry)
        for family in registry.collect():
            names |= {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
    return names


def _panels(dashboard: Dashboard) -> Iterator[Panel]:
    return (panel for section in dashboard.sections for panel in section.panels)


EXPRESSIONS = [
    pytest.param(query.expression, id=f"{dashboard.uid}: {panel.title}: {query.legend}")
    for dashboard in DASHBOARDS
    for panel in _panels(dashboard)
    for query in panel.queries
]


def test_the_page_of_panels_names_each() -> None:
    page = panels_markdown()
    for dashboard in DASHBOARDS:
        assert all(f"| {panel.title} | {panel.description} |" in page for panel in _panels(dashboard))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_its_committed_picture_shows_each_panel(dashboard: Dashboard) -> None:
    """Made by python -m tests.support.pictures docs/pictures."""
    shown = (DOCS / "pictures" / f"{dashboard.uid}.svg").read_text()
    assert "no data" not in shown
    assert [panel.title for panel in _panels(dashboard) if f">{escape(panel.title)}<" not in shown] == []


def test_no_other_dashboard_is_committed() -> None:
    committed = {path.stem for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")}
    assert committed == {dashboard.uid for dashboard in DASHBOARDS}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_has_metrics_that_there_are_of_the_chosen_clusters(expression: str) -> None:
    selected = re.findall(r"([a-z_]+)\{([^}]*)", expression)
    assert selected
    assert {name for name, _ in selected} <= _defined()
    assert all(matchers.startswith('cluster=~"$cluster"') for _, matchers in selected)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_panels_have_their_own_ids_and_places(dashboard: Dashboard) -> None:
    panels = to_json(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_rules_are_made_of_metrics_that_there_are() -> None:
    groups = rule_groups()
    known = _defined() | {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    for group in groups:
        for rule in group["rules"]:
            names = set(
                re.findall(r"\b(?:[a-z0-9]+_[a-z0-9_]+|[a-z]+:[a-z0-9_:]+)\b", _without_words(rule["expr"]))
            )
            assert names
            assert names <= known, rule


def _without_words(expression: str) -> str:
    """Without texts, labels of aggregations and functions."""
    expression = re.sub(r'"[^"]*"', "", expression)
    expression = re.sub(r"\{[^}]*\}", "", expression)
    expression = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", expression)
    return re.sub(r"\b[a-z_]+(?=\s*\()", "", expression)
