"""The workload of a role: how many pods, how they are replaced, which volumes stay theirs."""

from collections.abc import Iterator
from typing import Any

from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest
from llmserve.k8s.render.names import Object, labels, of_role
from llmserve.k8s.render.scaling import max_replicas_of, replicas_of
from llmserve.k8s.render.stores import nvme_classes, share_gb, volume_name

_REVISIONS = 5


def workload(manifest: Manifest, namespace: str, role: ProcessRole, template: Object) -> Object:
    """A StatefulSet for what keeps data, a Deployment for the others."""
    if role is ProcessRole.KVMANAGER:
        return _stateful_set(manifest, namespace, template)
    spec = {
        **_common(manifest, role, template),
        "strategy": _strategy(role),
        "progressDeadlineSeconds": int(manifest.deployment.k8s.ready_timeout_seconds),
    }
    return of_role("apps/v1", "Deployment", manifest.metadata.name, namespace, role) | {"spec": spec}


def _common(manifest: Manifest, role: ProcessRole, template: Object) -> dict[str, Any]:
    """Where an autoscaler sets the number of pods, nobody else may."""
    fixed = max_replicas_of(manifest, role) is None
    return {
        **({"replicas": replicas_of(manifest, role)} if fixed else {}),
        "revisionHistoryLimit": _REVISIONS,
        "selector": {"matchLabels": labels(manifest.metadata.name, role)},
        "template": template,
    }


def _strategy(role: ProcessRole) -> Object:
    """Two routers would each admit the whole cluster's requests. An engine's successor needs its GPU."""
    if role is ProcessRole.ROUTER:
        return {"type": "Recreate"}
    surge = 0 if role.is_worker else 1
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge}}


def _stateful_set(manifest: Manifest, namespace: str, template: Object) -> Object:
    found = of_role("apps/v1", "StatefulSet", manifest.metadata.name, namespace, ProcessRole.KVMANAGER)
    claims = list(_claims(manifest))
    spec = {
        **_common(manifest, ProcessRole.KVMANAGER, template),
        "serviceName": found["metadata"]["name"],
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        **({"volumeClaimTemplates": claims} if claims else {}),
    }
    return found | {"spec": spec}


def _claims(manifest: Manifest) -> Iterator[Object]:
    """A volume for each nvme class. They outlive the pods, and `down`."""
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
    """A twentieth for the file system and the store's own index."""
    return int(capacity_gb * 1.05) + 1
