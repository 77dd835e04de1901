"""Scraping and alerts, where the Prometheus Operator is installed."""

import re

from llmserve.k8s.render.names import COMPONENT_LABEL, INSTANCE_LABEL, Object, labels, named
from llmserve.metrics.rules import rule_groups

_API = "monitoring.coreos.com/v1"
_INTERVAL = "15s"
# The labels that the page of `llmserve up` has too, so that the same dashboards and alerts serve both.
_FROM = {
    "cluster": f"__meta_kubernetes_pod_label_{INSTANCE_LABEL}",
    "component": f"__meta_kubernetes_pod_label_{COMPONENT_LABEL}",
    "process": "__meta_kubernetes_pod_name",
}


def pod_monitor(cluster: str, namespace: str) -> Object:
    """All roles; the apiserver serves its metrics on its HTTP port."""
    found = named(_API, "PodMonitor", cluster, namespace, None, cluster)
    relabelings = [
        {"targetLabel": label, "sourceLabels": [re.sub(r"[^\w]", "_", source)]}
        for label, source in _FROM.items()
    ]
    endpoints = [
        {"port": port, "path": "/metrics", "interval": _INTERVAL, "relabelings": relabelings}
        for port in ("metrics", "http")
    ]
    return found | {
        "spec": {
            "selector": {"matchLabels": labels(cluster)},
            "podTargetLabels": [INSTANCE_LABEL, COMPONENT_LABEL],
            "podMetricsEndpoints": endpoints,
        }
    }


def prometheus_rule(cluster: str, namespace: str) -> Object:
    """They are the same for all clusters: each alert says of which one it is."""
    found = named(_API, "PrometheusRule", cluster, namespace, None, cluster)
    return found | {"spec": {"groups": rule_groups()}}
