"""The workload of a role: how many pods, what moves the number, how they are replaced, which volumes stay."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmserve.config.plan_pods import PodPlan
from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest
from llmserve.k8s.render.objects import Object, labels, of_role
from llmserve.k8s.render.volumes import nvme_classes, share_gb, volume_name

# Metrics that docs/kubernetes.md derives from ours for the metrics adapter.
QUEUE_SECONDS = "llmserve_queue_seconds"
WAITING_REQUESTS = "worker_requests_waiting"
TOKENS_SHARE = "llmserve_tokens_in_flight_share"
_CLUSTER = "app_kubernetes_io_instance"  # the pods' label, as Prometheus can write it

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")

_CPU_PERCENT = 70
_MAX_QUEUE = "500m"  # seconds that requests wait for a place
_MAX_WAITING = "4"  # prompts that wait in an engine
_MAX_TOKENS_SHARE = "750m"  # of an engine's KV blocks
_LIGHT_CALM_SECONDS = 300
_ENGINE_CALM_SECONDS = 900  # an engine is dear to start: gigabytes of weights


def replicas_of(manifest: Manifest, role: ProcessRole) -> int:
    """The number of pods at the start, which is also the least."""
    if role is ProcessRole.MODELMANAGER:
        return 1
    name = "decode" if role is ProcessRole.AGGREGATED else role.value
    return int(getattr(manifest.deployment.replicas, name))


def max_replicas_of(manifest: Manifest, role: ProcessRole) -> int | None:
    """The largest number of pods; None when the number is fixed."""
    most = manifest.deployment.k8s.max_replicas
    allowed = {
        ProcessRole.APISERVER: most.apiserver,
        ProcessRole.PREFILL: most.prefill,
        ProcessRole.DECODE: most.decode,
        ProcessRole.AGGREGATED: most.decode,
    }.get(role)
    return allowed if allowed is not None and allowed > replicas_of(manifest, role) else None


def autoscaler(pods: PodPlan, namespace: str) -> Iterator[Object]:
    """Yields no autoscaler for a fixed number of pods. The router is one pod: its state is in its memory."""
    manifest, role = pods.manifest, pods.role
    most = max_replicas_of(manifest, role)
    if most is None:
        return
    cluster = manifest.metadata.name
    found = of_role("autoscaling/v2", "HorizontalPodAutoscaler", cluster, namespace, role, pods.model)
    yield found | {
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": found["metadata"]["name"],
            },
            "minReplicas": replicas_of(manifest, role),
            "maxReplicas": most,
            "metrics": list(_metrics(pods)),
            "behavior": _behavior(role),
        }
    }


def _metrics(pods: PodPlan) -> Iterator[Object]:
    """Prefill scales by waiting prompts, decode by the memory of its answers. The largest demand counts."""
    role = pods.role
    if role is ProcessRole.APISERVER:
        target = {"type": "Utilization", "averageUtilization": _CPU_PERCENT}
        yield {"type": "Resource", "resource": {"name": "cpu", "target": target}}
        return
    if role in (ProcessRole.PREFILL, ProcessRole.AGGREGATED):
        queue = {"name": QUEUE_SECONDS, "selector": {"matchLabels": _series(pods)}}
        yield {"type": "External", "external": {"metric": queue, "target": _value(_MAX_QUEUE)}}
        yield _of_pods(WAITING_REQUESTS, _MAX_WAITING)
    if role in (ProcessRole.DECODE, ProcessRole.AGGREGATED):
        yield _of_pods(TOKENS_SHARE, _MAX_TOKENS_SHARE)


def _series(pods: PodPlan) -> dict[str, str]:
    """Returns the labels of the queue that the pods serve. Kubernetes refuses some names of models as values;
    such a model scales by the queues of all."""
    labels = {_CLUSTER: pods.manifest.metadata.name}
    name = pods.manifest.model.served_name if pods.model else ""
    return labels | {"model": name} if _LABEL_VALUE.fullmatch(name) else labels


def _of_pods(metric: str, average: str) -> Object:
    target = {"type": "AverageValue", "averageValue": average}
    return {"type": "Pods", "pods": {"metric": {"name": metric}, "target": target}}


def _value(value: str) -> Mapping[str, str]:
    return {"type": "Value", "value": value}


def _behavior(role: ProcessRole) -> dict[str, Any]:
    """Scales up at once, and down one pod after another when the load has been low for a while."""
    calm = _ENGINE_CALM_SECONDS if role.is_worker else _LIGHT_CALM_SECONDS
    return {
        "scaleUp": {"stabilizationWindowSeconds": 0},
        "scaleDown": {
            "stabilizationWindowSeconds": calm,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": calm}],
        },
    }


def disruption_budget(pods: PodPlan, namespace: str) -> Object:
    """One pod of a role may be away at a time. A role of one pod must not stop a node from being drained."""
    cluster = pods.manifest.metadata.name
    found = of_role("policy/v1", "PodDisruptionBudget", cluster, namespace, pods.role, pods.model)
    return found | {
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": labels(cluster, pods.role, pods.model)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
    }


_REVISIONS = 5


def workload(pods: PodPlan, namespace: str, template: Object) -> Object:
    """A StatefulSet for the role that keeps data, a Deployment for the others."""
    manifest, role = pods.manifest, pods.role
    if role is ProcessRole.KVMANAGER:
        return _stateful_set(pods, namespace, template)
    spec = {
        **_common(pods, template),
        "strategy": _strategy(role),
        "progressDeadlineSeconds": int(manifest.deployment.k8s.ready_timeout_seconds),
    }
    found = of_role("apps/v1", "Deployment", manifest.metadata.name, namespace, role, pods.model)
    return found | {"spec": spec}


def _common(pods: PodPlan, template: Object) -> dict[str, Any]:
    """The number of pods is left out where an autoscaler sets it."""
    manifest, role = pods.manifest, pods.role
    fixed = max_replicas_of(manifest, role) is None
    return {
        **({"replicas": replicas_of(manifest, role)} if fixed else {}),
        "revisionHistoryLimit": _REVISIONS,
        "selector": {"matchLabels": labels(manifest.metadata.name, role, pods.model)},
        "template": template,
    }


def _strategy(role: ProcessRole) -> Object:
    """Two routers would each admit the whole cluster's requests, and two modelmanagers would undo each
    other's work. A new engine needs the GPU of the old one."""
    if role in (ProcessRole.ROUTER, ProcessRole.MODELMANAGER):
        return {"type": "Recreate"}
    surge = 0 if role.is_worker else 1
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge}}


def _stateful_set(pods: PodPlan, namespace: str, template: Object) -> Object:
    manifest = pods.manifest
    found = of_role("apps/v1", "StatefulSet", manifest.metadata.name, namespace, ProcessRole.KVMANAGER)
    claims = list(_claims(manifest))
    spec = {
        **_common(pods, template),
        "serviceName": found["metadata"]["name"],
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        **({"volumeClaimTemplates": claims} if claims else {}),
    }
    return found | {"spec": spec}


def _claims(manifest: Manifest) -> Iterator[Object]:
    """A volume for each NVMe class. Volumes outlive the pods, and `down`."""
    for index, storage in nvme_classes(manifest):
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": volume_name(index), "labels": labels(manifest.metadata.name)},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": manifest.deployment.k8s.storage_class,
                "resources": {"requests": {"storage": f"{_with_room(share_gb(manifest, storage))}Gi"}},
            },
        }


def _with_room(capacity_gb: float) -> int:
    """Adds a twentieth for the file system and the store's own index."""
    return int(capacity_gb * 1.05) + 1
