"""Grafana dashboards as code: what each shows, and its JSON. Pure.

python -m llmserve.metrics.dashboards --write deploy/grafana/dashboards
"""

from llmserve.metrics.dashboards.kv import KV
from llmserve.metrics.dashboards.overview import OVERVIEW
from llmserve.metrics.dashboards.panels import Dashboard
from llmserve.metrics.dashboards.tenants import TENANTS
from llmserve.metrics.dashboards.workers import WORKERS

__all__ = ["DASHBOARDS", "Dashboard"]

DASHBOARDS: tuple[Dashboard, ...] = (OVERVIEW, KV, TENANTS, WORKERS)
