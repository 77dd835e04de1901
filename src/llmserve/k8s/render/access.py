"""Who reaches whom: Services in front of roles, network policies around them, an account without rights."""

import secrets
from collections.abc import Collection
from typing import Any

from llmserve.config.plan_pods import GRPC_PORT, HTTP_PORT, METRICS_PORT, plan_pods
from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest
from llmserve.k8s.render.objects import RBAC, Object, labels, named, of_role
from llmserve.k8s.render.volumes import certificate_name, secret_name
from llmserve.rpc.credentials import SECRET_NAME

_WORKERS = frozenset(role for role in ProcessRole if role.is_worker)
# Who calls a role's gRPC service.
_CALLERS = {
    ProcessRole.ROUTER: _WORKERS | {ProcessRole.APISERVER, ProcessRole.MODELMANAGER},
    ProcessRole.KVMANAGER: _WORKERS | {ProcessRole.ROUTER, ProcessRole.APISERVER},
    ProcessRole.MODELMANAGER: frozenset[ProcessRole](),
}
# What the modelmanager makes, and what it looks at.
_MADE = {
    "": ["configmaps"],
    "apps": ["deployments"],
    "policy": ["poddisruptionbudgets"],
    "autoscaling": ["horizontalpodautoscalers"],
}
_LISTED = {"": ["configmaps", "pods"], "apps": ["deployments"]}


def cluster_secret(cluster: str, namespace: str) -> Object:
    """Returns a Secret with a new secret of the cluster. It is no part of what is rendered: files would show
    it, and each rendering would have another one."""
    found = named("v1", "Secret", cluster, namespace, None, secret_name(cluster))
    return found | {"type": "Opaque", "stringData": {SECRET_NAME: secrets.token_hex(32)}}


def certificate_secrets(manifest: Manifest, namespace: str) -> list[Object]:
    """Returns the Secrets with the certificates of all roles, without what is in them: others make them."""
    if manifest.security.mtls is None:
        return []
    cluster = manifest.metadata.name
    names = dict.fromkeys(certificate_name(cluster, pods.role) for pods in plan_pods(manifest))
    return [named("v1", "Secret", cluster, namespace, None, name) for name in names]


def service_account(cluster: str, namespace: str) -> Object:
    """The processes ask the API server of Kubernetes for nothing: no Role is bound, no token mounted."""
    account = named("v1", "ServiceAccount", cluster, namespace, None, cluster)
    return account | {"automountServiceAccountToken": False}


def modelmanager_rights(cluster: str, namespace: str) -> tuple[Object, ...]:
    """Returns the account of the modelmanager, and the Role that lets it make and delete the objects of
    models. Kubernetes cannot limit that to some names, since a name is not known before."""
    role = ProcessRole.MODELMANAGER
    account = of_role("v1", "ServiceAccount", cluster, namespace, role)
    verbs = [(_MADE, ["create", "patch", "delete"]), (_LISTED, ["list"])]
    rules = [
        {"apiGroups": [group], "resources": kinds, "verbs": allowed}
        for resources, allowed in verbs
        for group, kinds in resources.items()
    ]
    name = account["metadata"]["name"]
    bound = {
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    return (
        account | {"automountServiceAccountToken": False},
        of_role(f"{RBAC}/v1", "Role", cluster, namespace, role) | {"rules": rules},
        of_role(f"{RBAC}/v1", "RoleBinding", cluster, namespace, role) | bound,
    )


def service(cluster: str, namespace: str, role: ProcessRole, *, tls: bool = False) -> Object:
    """tls: gRPC is encrypted. The kvmanager's Service has no address of its own: the pods of a StatefulSet
    are found by name."""
    is_http = role is ProcessRole.APISERVER
    port, name = (HTTP_PORT, "http") if is_http else (GRPC_PORT, "grpc")
    spec: dict[str, Any] = {
        "type": "ClusterIP",
        "selector": labels(cluster, role),
        "ports": [
            {
                "name": name,
                "port": port,
                "targetPort": name,
                "protocol": "TCP",
                "appProtocol": "https" if tls and not is_http else _PROTOCOL[name],
            }
        ],
    }
    if role is ProcessRole.KVMANAGER:
        spec["clusterIP"] = "None"
    return of_role("v1", "Service", cluster, namespace, role) | {"spec": spec}


_PROTOCOL = {"http": "http", "grpc": "kubernetes.io/h2c"}


def network_policy(
    cluster: str, namespace: str, role: ProcessRole, present: Collection[ProcessRole]
) -> Object:
    """Limits what may come in; probes come from the node and always may. What goes out is not limited: models
    come from a hub, and object tiers may be anywhere."""
    spec = {
        "podSelector": {"matchLabels": labels(cluster, role)},
        "policyTypes": ["Ingress"],
        "ingress": _ingress(cluster, role, present),
    }
    return of_role("networking.k8s.io/v1", "NetworkPolicy", cluster, namespace, role) | {"spec": spec}


def _ingress(cluster: str, role: ProcessRole, present: Collection[ProcessRole]) -> list[Object]:
    if role is ProcessRole.APISERVER:
        return [{"ports": [_port(HTTP_PORT)]}]
    metrics = {"from": [{"namespaceSelector": {}}], "ports": [_port(METRICS_PORT)]}
    if role.is_worker:
        calls = {"from": [_pods(cluster, ProcessRole.APISERVER)], "ports": [_port(GRPC_PORT)]}
        return [calls, _bytes_of_blocks(cluster, present), metrics]
    callers = [_pods(cluster, one) for one in present if one in _CALLERS[role]]
    if not callers:
        return [metrics]  # an empty list would let everybody in
    calls = {"from": callers, "ports": [_port(GRPC_PORT)]}
    if role is ProcessRole.KVMANAGER:
        return [calls, _bytes_of_blocks(cluster, present), metrics]
    return [calls, metrics]


def _bytes_of_blocks(cluster: str, present: Collection[ProcessRole]) -> Object:
    """KV goes over ports that the transports choose."""
    return {"from": [_pods(cluster, one) for one in present if one.is_worker]}


def _port(number: int) -> Object:
    return {"port": number, "protocol": "TCP"}


def _pods(cluster: str, role: ProcessRole) -> Object:
    return {"podSelector": {"matchLabels": labels(cluster, role)}}
