"""A dashboard's parts, the expressions that many panels are made of, and a dashboard as Grafana's JSON.

`$cluster` and `$__rate_interval` are Grafana's variables: the chosen clusters, and a time that holds
several scrapes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_CHOSEN = 'cluster=~"$cluster"'


class Unit(StrEnum):
    """Units, with Grafana's names."""

    NONE = "short"
    PER_SECOND = "ops"
    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"
    BITS_PER_SECOND = "bps"
    RATIO = "percentunit"


@dataclass(frozen=True, slots=True)
class Query:
    """legend: name of each series; `{{label}}` stands for its label."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """description: what the panel shows, and what to do about it. stacked: the series are parts of a sum."""

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class DashboardSection:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """uid: Grafana's identifier, and the name of the file."""

    uid: str
    title: str
    description: str
    sections: tuple[DashboardSection, ...] = field(default=())


def panel(title: str, description: str, unit: Unit, *queries: Query, stacked: bool = False) -> Panel:
    return Panel(title, description, unit, queries, stacked)


def series(metric: str, *matchers: str) -> str:
    """The metric's series of the chosen clusters."""
    return f"{metric}{{{','.join((_CHOSEN, *matchers))}}}"


def rate(metric: str, *matchers: str) -> str:
    return f"rate({series(metric, *matchers)}[$__rate_interval])"


def total(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def each(expression: str, label: str) -> Query:
    """Returns the query of one series for each value of a label, named after it."""
    return Query(total(expression, label), f"{{{{{label}}}}}")


def mean(metric: str, count: str, by: str) -> str:
    """The mean of one counter per count of another."""
    return f"{total(rate(metric), by)} / {total(rate(count), by)}"


def quantile(q: float, histogram: str, *by: str) -> str:
    """by: labels of which each value has a series of its own."""
    return f"histogram_quantile({q}, {total(rate(f'{histogram}_bucket'), ', '.join(('le', *by)))})"


def quantiles(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, histogram), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99))


_SCHEMA_VERSION = 39
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def text(dashboard: Dashboard) -> str:
    return json.dumps(to_json(dashboard), indent=1) + "\n"


def to_json(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["llmserve"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), _cluster()]},
        "links": [
            {
                "type": "dashboards",
                "title": "LLMServe",
                "tags": ["llmserve"],
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "panels": list(_panels(dashboard)),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _cluster() -> dict[str, Any]:
    """ "All" also matches metrics that were scraped without the label."""
    return {
        "name": "cluster",
        "label": "Cluster",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(router_queued_requests, cluster)",
        "definition": "label_values(router_queued_requests, cluster)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    top, number = 0, 1
    for section in dashboard.sections:
        yield _row(section, number, top)
        top, number = top + 1, number + 1
        for index, panel in enumerate(section.panels):
            line, column = divmod(index, _COLUMNS // _WIDTH)
            yield _panel(panel, number, column * _WIDTH, top + line * _HEIGHT)
            number += 1
        top += _HEIGHT * -(-len(section.panels) // (_COLUMNS // _WIDTH))


def _row(section: DashboardSection, number: int, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
    return {
        "id": number,
        "type": "row",
        "title": section.title,
        "gridPos": place,
        "collapsed": False,
        "panels": [],
    }


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    custom = {"fillOpacity": 30 if panel.stacked else 8, "showPoints": "never", "stacking": stacking}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": left, "y": top},
        "fieldConfig": {"defaults": {"unit": panel.unit.value, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
    }
