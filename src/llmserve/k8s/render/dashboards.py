"""The Grafana dashboards, where Grafana's sidecar looks for them."""

from collections.abc import Iterator

from llmserve.k8s.render.names import Object, named
from llmserve.metrics.dashboards import DASHBOARDS
from llmserve.metrics.dashboards.grafana import text

# What the sidecar of Grafana's Helm charts looks for by default.
SIDECAR_LABEL = "grafana_dashboard"


def dashboard_maps(cluster: str, namespace: str) -> Iterator[Object]:
    """They are the same for all clusters: the dashboards have a variable for the cluster."""
    for dashboard in DASHBOARDS:
        name = f"{cluster}-{dashboard.uid.removeprefix('llmserve-')}-dashboard"
        found = named("v1", "ConfigMap", cluster, namespace, None, name)
        found["metadata"]["labels"][SIDECAR_LABEL] = "1"
        yield found | {"data": {f"{dashboard.uid}.json": text(dashboard)}}
