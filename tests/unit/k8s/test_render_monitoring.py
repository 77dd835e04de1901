"""What Grafana and the Prometheus Operator are given."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from llmserve.config.schema import Manifest
from llmserve.k8s.render import Object

Parse = Callable[[str], Manifest]
Render = Callable[[Manifest], dict[str, Object]]

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "llmserve.rules.yml"


def test_dashboards_are_where_grafanas_sidecar_looks(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse("deployment: {k8s: {grafana_dashboards: true}}"))
    maps = [one for one in objects.values() if one["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert len(maps) == len({one["metadata"]["name"] for one in maps}) == 4
    for one in maps:
        ((name, text),) = one["data"].items()
        assert name == f"{json.loads(text)['uid']}.json"


def test_alerts_are_where_the_prometheus_operator_looks(parse: Parse, rendered: Render) -> None:
    (rule,) = [
        one
        for one in rendered(parse("deployment: {k8s: {prometheus_rules: true}}")).values()
        if one["kind"] == "PrometheusRule"
    ]
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_scraped_samples_have_the_labels_of_the_dashboards(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse("deployment: {k8s: {pod_monitor: true}}"))
    (monitor,) = [one for one in objects.values() if one["kind"] == "PodMonitor"]
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        sources = {one["targetLabel"]: one["sourceLabels"] for one in endpoint["relabelings"]}
        assert sources == {
            "cluster": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"],
            "component": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
            "process": ["__meta_kubernetes_pod_name"],
        }
