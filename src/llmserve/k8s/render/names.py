"""What every object has: apiVersion, kind, metadata, labels."""

from collections.abc import Mapping
from typing import Any

from llmserve.config.plan_pods import service_name
from llmserve.config.plan_types import ProcessRole

Object = dict[str, Any]

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGER_LABEL = "app.kubernetes.io/managed-by"
PRODUCT = "llmserve"


def labels(cluster: str, role: ProcessRole | None = None) -> dict[str, str]:
    """Of an object; with a role also what its pods are selected by."""
    component = {} if role is None else {COMPONENT_LABEL: role.value}
    return {NAME_LABEL: PRODUCT, INSTANCE_LABEL: cluster, **component}


def managed_labels(cluster: str, role: ProcessRole | None = None) -> dict[str, str]:
    """Of what LLMServe makes itself, and so may take away."""
    return labels(cluster, role) | {MANAGER_LABEL: PRODUCT}


def selector(cluster: str) -> str:
    """Finds all objects that LLMServe made for a cluster."""
    return _joined(managed_labels(cluster))


def pod_selector(cluster: str) -> str:
    """Finds the pods of a cluster, which its workloads made."""
    return _joined(labels(cluster))


def _joined(wanted: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def named(api: str, kind: str, cluster: str, namespace: str, role: ProcessRole | None, name: str) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": managed_labels(cluster, role)}
    return {"apiVersion": api, "kind": kind, "metadata": metadata}


def of_role(api: str, kind: str, cluster: str, namespace: str, role: ProcessRole) -> Object:
    """The object of this kind that a role has one of: named as its Service."""
    return named(api, kind, cluster, namespace, role, service_name(cluster, role))
