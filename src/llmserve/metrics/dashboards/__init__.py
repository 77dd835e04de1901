"""Grafana dashboards, and the recording and alert rules of Prometheus, as code. Pure."""

from importlib.resources import files
from typing import Any

import yaml

from llmserve.metrics.dashboards.kv import KV
from llmserve.metrics.dashboards.overview import OVERVIEW
from llmserve.metrics.dashboards.panels import Dashboard
from llmserve.metrics.dashboards.tenants import TENANTS
from llmserve.metrics.dashboards.workers import WORKERS

__all__ = ["DASHBOARDS", "Dashboard", "rule_groups", "rules_text"]

DASHBOARDS: tuple[Dashboard, ...] = (OVERVIEW, KV, TENANTS, WORKERS)


def rules_text() -> str:
    """Returns the rules as Prometheus reads them."""
    return files("llmserve.metrics").joinpath("llmserve.rules.yml").read_text()


def rule_groups() -> list[dict[str, Any]]:
    """Returns the groups of rules; each has a name and its rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(rules_text())["groups"]
    return groups
