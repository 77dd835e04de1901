"""What is rendered beside the workloads: the manifest itself, dashboards, what Prometheus scrapes."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from llmserve.config.conflict import Conflict
from llmserve.config.lora import lora_of
from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest, Models
from llmserve.k8s.render.objects import (
    COMPONENT_LABEL,
    INSTANCE_LABEL,
    MODEL_LABEL,
    Object,
    labels,
    named,
    of_role,
)
from llmserve.k8s.render.placement import is_on_gpu
from llmserve.metrics.dashboards import DASHBOARDS, rule_groups
from llmserve.metrics.dashboards.panels import text

FILE = "llmserve.yaml"
HASH_ANNOTATION = "llmserve/manifest-sha256"
ORDER_ANNOTATION = "llmserve/order"
DIRECTORY_ANNOTATION = "llmserve/directory"
FIRST_START_ANNOTATION = "llmserve/first-start"
_NIXL = "nixl"
_HEAD = ("apiVersion", "kind", "metadata")


def config_map(manifest: Manifest, namespace: str) -> Object:
    cluster = manifest.metadata.name
    found = named("v1", "ConfigMap", cluster, namespace, None, f"{cluster}-manifest")
    return found | {"data": {FILE: manifest_text(manifest)}}


def manager_map(manifest: Manifest, namespace: str, image: str) -> Object:
    """The ConfigMap of the modelmanager: the whole manifest, since it makes objects of it. namespace, image:
    the command line may have given others than the manifest's."""
    found = of_role("v1", "ConfigMap", manifest.metadata.name, namespace, ProcessRole.MODELMANAGER)
    k8s = manifest.deployment.k8s.model_copy(update={"namespace": namespace, "image": image})
    deployment = manifest.deployment.model_copy(update={"mode": "k8s", "k8s": k8s})
    whole = manifest.model_copy(update={"deployment": deployment})
    return found | {"data": {FILE: _yaml(whole, whole.model_dump(mode="json", exclude_unset=True))}}


def model_map_name(cluster: str, slug: str) -> str:
    return f"{cluster}-{slug}-model"


def model_map(manifest: Manifest, namespace: str, annotations: Mapping[str, str]) -> Object:
    """The ConfigMap of a model that the modelmanager has. manifest: of this model alone."""
    cluster, slug = manifest.metadata.name, manifest.model.slug
    found = named("v1", "ConfigMap", cluster, namespace, None, model_map_name(cluster, slug))
    found["metadata"]["labels"][MODEL_LABEL] = slug
    found["metadata"]["annotations"] = dict(annotations)
    return found | {"data": {FILE: manifest_text(manifest)}}


def manifest_text(manifest: Manifest) -> str:
    """The manifest with the settings that processes use, and no others: changing a comment or a number of
    pods restarts nothing."""
    data = manifest.model_dump(mode="json", exclude_unset=True)
    data["deployment"] = _deployment(manifest)
    data.get("security", {}).pop("mtls", None)  # processes follow LLMSERVE_CERTIFICATES
    if not isinstance(manifest.models, Models):
        data["models"] = [_without_counts(manifest, entry) for entry in data["models"]]
    if (order := engine_order(manifest)) != manifest.transfer.engine_order:
        data.setdefault("transfer", {})["engine_order"] = list(order)
    return _yaml(manifest, data)


def _yaml(manifest: Manifest, data: dict[str, Any]) -> str:
    head = {key: data.pop(key) for key in _HEAD if key in data}
    head.setdefault("apiVersion", manifest.apiVersion)
    head["metadata"] = {"name": manifest.metadata.name}
    return yaml.safe_dump({**head, "spec": data}, sort_keys=False, width=110)


def engine_order(manifest: Manifest) -> tuple[str, ...]:
    """Returns `transfer.engine_order` as pods have it. Pods share neither PIDs nor GPUs, which CUDA IPC
    needs. So without RDMA, NIXL goes over UCX's TCP: slower than what stages, and a reader that is killed may
    end its owner (docs/transfer.md). Then NIXL is used only where the manifest names it. With
    `security.mtls`, none is used that does not encrypt, unless the manifest allows that."""
    transfer, mtls = manifest.transfer, manifest.security.mtls
    if mtls is not None and not mtls.plain_transports:
        return ()
    order = transfer.gpu_order if is_on_gpu(manifest) else transfer.engine_order
    if _may_use_nixl(manifest) or "engine_order" in transfer.model_fields_set:
        return order
    return tuple(name for name in order if name != _NIXL)


def doubtful(manifest: Manifest) -> Iterator[Conflict]:
    """Yields settings that a cluster on Kubernetes can have, but had better not."""
    if _NIXL in engine_order(manifest) and not _may_use_nixl(manifest):
        message = (
            "has nixl, which finds no CUDA IPC between pods and goes over TCP: that is slow, and a reader "
            "that is killed may end the engine it reads from; take nixl out, or name an RDMA device"
        )
        yield Conflict.at(message, "transfer.engine_order", "deployment.k8s.rdma_resource")


def _may_use_nixl(manifest: Manifest) -> bool:
    return manifest.deployment.k8s.rdma_resource is not None


def _deployment(manifest: Manifest) -> dict[str, Any]:
    """Keeps the mode, by which processes know that they are pods, and the numbers of pods that they read:
    decode engines share a KV budget, kvmanagers the capacity of the tiers."""
    replicas = manifest.deployment.replicas
    counted: dict[str, int] = {}
    if _counts_decode(manifest):
        counted["decode"] = replicas.decode
    if manifest.storageClasses:
        counted["kvmanager"] = replicas.kvmanager
    k8s = _compared(manifest)
    return {
        "mode": "k8s",
        "disaggregated": manifest.deployment.disaggregated,
        **({"replicas": counted} if counted else {}),
        **({"k8s": k8s} if k8s else {}),
    }


def _compared(manifest: Manifest) -> dict[str, Any]:
    """Returns the keys of `deployment.k8s` with which rules compare other sections: pods check them again."""
    k8s, found = manifest.deployment.k8s, dict[str, Any]()
    if any(lora_of(manifest.alone(model)) for model in manifest.served):
        found["shm_gb"] = k8s.shm_gb
    if manifest.api.response_store.enabled:
        found["max_replicas"] = {"apiserver": k8s.max_replicas.apiserver}
    if k8s.manage_models:
        found |= {"manage_models": True, "model_cache_claim": k8s.model_cache_claim}
    return found


def _counts_decode(manifest: Manifest) -> bool:
    return manifest.budgets.max_kv_io_gbps is not None


def _without_counts(manifest: Manifest, entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry of a model with the numbers of pods that processes read."""
    replicas = entry.pop("replicas", {})
    kept = {"decode": replicas["decode"]} if _counts_decode(manifest) and "decode" in replicas else {}
    return entry | ({"replicas": kept} if kept else {})


def manifest_hash(configuration: Object) -> str:
    """The hash of the text that the pods read."""
    return hashlib.sha256(str(configuration["data"][FILE]).encode()).hexdigest()


# What the sidecar of Grafana's Helm charts looks for by default.
SIDECAR_LABEL = "grafana_dashboard"


def dashboard_maps(cluster: str, namespace: str) -> Iterator[Object]:
    """The dashboards, which are the same for all clusters: they have a variable for the cluster."""
    for dashboard in DASHBOARDS:
        name = f"{cluster}-{dashboard.uid.removeprefix('llmserve-')}-dashboard"
        found = named("v1", "ConfigMap", cluster, namespace, None, name)
        found["metadata"]["labels"][SIDECAR_LABEL] = "1"
        yield found | {"data": {f"{dashboard.uid}.json": text(dashboard)}}


_API = "monitoring.coreos.com/v1"
_INTERVAL = "15s"
# The labels that the page of `llmserve up` has too, so that the same dashboards and alerts serve both.
_FROM = {
    "cluster": f"__meta_kubernetes_pod_label_{INSTANCE_LABEL}",
    "component": f"__meta_kubernetes_pod_label_{COMPONENT_LABEL}",
    "process": "__meta_kubernetes_pod_name",
}


def pod_monitor(cluster: str, namespace: str) -> Object:
    """Lets Prometheus scrape all roles; the apiserver serves its metrics on its HTTP port."""
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
    """The rules, which are the same for all clusters: each alert names its cluster."""
    found = named(_API, "PrometheusRule", cluster, namespace, None, cluster)
    return found | {"spec": {"groups": rule_groups()}}
