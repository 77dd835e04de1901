"""Kubernetes objects: their names and labels, and their text as YAML."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from llmserve.config.plan_pods import service_name
from llmserve.config.plan_types import ProcessRole

Object = dict[str, Any]

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
MODEL_LABEL = "llmserve/model"
MANAGER_LABEL = "app.kubernetes.io/managed-by"
PRODUCT = "llmserve"
RBAC = "rbac.authorization.k8s.io"


def labels(cluster: str, role: ProcessRole | None = None, model: str = "") -> dict[str, str]:
    """The labels of an object; with a role, also those by which its pods are selected. model: the slug of the
    model of workers, when there are several; without it, the pods of all models are selected."""
    component = {} if role is None else {COMPONENT_LABEL: role.value}
    of_model = {MODEL_LABEL: model} if model else {}
    return {NAME_LABEL: PRODUCT, INSTANCE_LABEL: cluster, **component, **of_model}


def managed_labels(cluster: str, role: ProcessRole | None = None, model: str = "") -> dict[str, str]:
    """The labels of objects that LLMServe makes itself and therefore may delete."""
    return labels(cluster, role, model) | {MANAGER_LABEL: PRODUCT}


ALL_CLUSTERS = f"{MANAGER_LABEL}={PRODUCT}"


def selector(cluster: str) -> str:
    """Finds all objects that LLMServe made for a cluster."""
    return _joined(managed_labels(cluster))


def title(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def other_cluster(one: Object, cluster: str) -> str:
    """Returns the other cluster that an object of the server is of; empty: none. `a` with a model `b` has
    names that are those of a cluster `a-b`, too."""
    found: Mapping[str, str] = one["metadata"].get("labels", {})
    owner = found.get(INSTANCE_LABEL, "") if found.get(MANAGER_LABEL) == PRODUCT else ""
    return "" if owner == cluster else owner


def taken_text(one: Object, owner: str) -> str:
    """owner: the cluster that has the object."""
    return f"{title(one)} is of cluster '{owner}', in the same namespace: rename one of the two, or move it"


def pod_selector(cluster: str) -> str:
    """Finds the pods of a cluster, which its workloads made."""
    return _joined(labels(cluster))


def _joined(wanted: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def named(api: str, kind: str, cluster: str, namespace: str, role: ProcessRole | None, name: str) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": managed_labels(cluster, role)}
    return {"apiVersion": api, "kind": kind, "metadata": metadata}


def of_role(api: str, kind: str, cluster: str, namespace: str, role: ProcessRole, model: str = "") -> Object:
    """The one object of this kind that a role has, or a role of a model; it is named as the role's
    Service."""
    found = named(api, kind, cluster, namespace, role, service_name(cluster, role, model))
    found["metadata"]["labels"] = managed_labels(cluster, role, model)
    return found


_MIB_OF_A_GIB = 1024
KUSTOMIZATION = "kustomization.yaml"


def to_yaml(data: Object) -> str:
    """YAML with the keys in their original order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110)


def files(objects: Iterable[Object]) -> Mapping[str, str]:
    """The text of each file, by its name."""
    texts = {_file_name(one): to_yaml(one) for one in objects}
    index = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(texts),
    }
    return {**texts, KUSTOMIZATION: to_yaml(index)}


def _file_name(one: Object) -> str:
    return f"{one['kind'].lower()}-{one['metadata']['name']}.yaml"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def gibibytes(number: float) -> str:
    """A quantity of GiB as Kubernetes writes it."""
    return f"{number:g}Gi" if number == int(number) else f"{round(number * _MIB_OF_A_GIB)}Mi"
