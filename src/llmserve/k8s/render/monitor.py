"""Scraping, where the Prometheus Operator is installed."""

from llmserve.k8s.render.names import COMPONENT_LABEL, INSTANCE_LABEL, Object, labels, named

_INTERVAL = "15s"


def pod_monitor(cluster: str, namespace: str) -> Object:
    """All roles; the apiserver serves its metrics on its HTTP port."""
    found = named("monitoring.coreos.com/v1", "PodMonitor", cluster, namespace, None, cluster)
    endpoints = [{"port": port, "path": "/metrics", "interval": _INTERVAL} for port in ("metrics", "http")]
    return found | {
        "spec": {
            "selector": {"matchLabels": labels(cluster)},
            "podTargetLabels": [INSTANCE_LABEL, COMPONENT_LABEL],
            "podMetricsEndpoints": endpoints,
        }
    }
