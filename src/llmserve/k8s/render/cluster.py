"""All objects of a cluster, in the order to make them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmserve.config.conflict import Conflict, refuse
from llmserve.config.plan_pods import plan_pods, plan_workers
from llmserve.config.plan_types import ProcessRole
from llmserve.config.rules import conflicts
from llmserve.config.schema import Manifest
from llmserve.k8s.render.access import modelmanager_rights, network_policy, service, service_account
from llmserve.k8s.render.configuration import (
    config_map,
    dashboard_maps,
    manager_map,
    model_map,
    pod_monitor,
    prometheus_rule,
)
from llmserve.k8s.render.objects import Object
from llmserve.k8s.render.placement import is_on_gpu, wanted_resources
from llmserve.k8s.render.pods import PodContext, pod_template
from llmserve.k8s.render.workloads import autoscaler, disruption_budget, workload
from llmserve.transfer.pinned import PinnedMemory

# A StatefulSet's pods carry its name and a hash in one label of at most 63 characters.
_MAX_NAME = 40


@dataclass(frozen=True, slots=True)
class RenderTarget:
    """The namespace and the image: the manifest's, unless the command line gives others."""

    namespace: str
    image: str


def render(manifest: Manifest, target: RenderTarget) -> tuple[Object, ...]:
    """Renders all objects of a cluster. Errors: ManifestError for settings that Kubernetes cannot have."""
    refuse(impossible(manifest))
    return tuple(_objects(manifest, target))


def _objects(manifest: Manifest, target: RenderTarget) -> Iterator[Object]:
    cluster, namespace, k8s = manifest.metadata.name, target.namespace, manifest.deployment.k8s
    configuration = config_map(manifest, namespace)
    plan = plan_pods(manifest)
    yield service_account(cluster, namespace)
    yield configuration
    roles = list(dict.fromkeys(pods.role for pods in plan))
    contexts = [PodContext(pods, target.image, configuration) for pods in plan]
    if k8s.manage_models:
        managers = manager_map(manifest, namespace, target.image)
        yield from modelmanager_rights(cluster, namespace)
        yield managers
        roles = list(dict.fromkeys([*roles, *(role for role in ProcessRole if role.is_worker)]))
        contexts = [_managed(one, managers) for one in contexts if not one.role.is_worker]
    for role in roles:
        yield network_policy(cluster, namespace, role, roles)
    for role in roles:
        if not role.is_worker and role is not ProcessRole.MODELMANAGER:
            yield service(cluster, namespace, role, tls=manifest.security.mtls is not None)
    yield from _of_pods(contexts, namespace)
    if k8s.pod_monitor:
        yield pod_monitor(cluster, namespace)
    if k8s.prometheus_rules:
        yield prometheus_rule(cluster, namespace)
    if k8s.grafana_dashboards:
        yield from dashboard_maps(cluster, namespace)


def _managed(context: PodContext, managers: Object) -> PodContext:
    """managers: the ConfigMap of the modelmanager."""
    is_manager = context.role is ProcessRole.MODELMANAGER
    return replace(context, configuration=managers) if is_manager else context


def _of_pods(contexts: Sequence[PodContext], namespace: str) -> Iterator[Object]:
    for context in contexts:
        yield disruption_budget(context.pods, namespace)
    for context in contexts:
        yield workload(context.pods, namespace, pod_template(context))
    for context in contexts:
        yield from autoscaler(context.pods, namespace)


def render_model(
    manifest: Manifest, target: RenderTarget, annotations: Mapping[str, str]
) -> tuple[Object, ...]:
    """Renders the objects of a model that the modelmanager has. manifest: of this model alone. annotations:
    what another modelmanager needs to know of it. Errors: as render."""
    refuse(impossible(manifest))
    configuration = model_map(manifest, target.namespace, annotations)
    contexts = [PodContext(pods, target.image, configuration) for pods in plan_workers(manifest)]
    return (configuration, *_of_pods(contexts, target.namespace))


def impossible(manifest: Manifest) -> Iterator[Conflict]:
    """Yields the settings that a cluster on Kubernetes cannot have."""
    yield from _too_much_pinned(manifest)
    yield from _refused_by_pods(manifest)
    name, keys, secret = manifest.metadata.name, manifest.security.api_keys, manifest.deployment.k8s.secret
    if len(name) > _MAX_NAME or not re.match(r"[a-z]", name):
        message = (
            f"in Kubernetes it must begin with a letter and have at most {_MAX_NAME} characters, got '{name}'"
        )
        yield Conflict((("metadata", "name"),), message)
    if manifest.deployment.replicas.router > 1:
        message = "several routers are not available in Kubernetes yet"
        yield Conflict((("deployment", "replicas", "router"),), message)
    for index, api_key in enumerate(keys):
        if api_key.key is not None:
            message = (
                "has its key in the manifest, which becomes a ConfigMap that many may read; "
                "use key_env, and a Secret named in deployment.k8s.secret"
            )
            yield Conflict((("security", "api_keys", index),), message)
    if (place := manifest.security.keys) is not None and place.file is not None:
        message = "pods share no file that can change; use redis: true"
        yield Conflict((("security", "keys", "file"),), message)
    named = next((index for index, api_key in enumerate(keys) if api_key.key_env), None)
    if named is not None and secret is None:
        message = (
            f"must name the Secret that has '{keys[named].key_env}' (security.api_keys[{named}].key_env)"
        )
        yield Conflict((("deployment", "k8s", "secret"),), message)


def _refused_by_pods(manifest: Manifest) -> Iterator[Conflict]:
    """Yields what rules refuse only where the manifest says that it is for pods. A flag of the command line
    may have said so instead."""
    if manifest.deployment.mode != "k8s":
        deployment = manifest.deployment.model_copy(update={"mode": "k8s"})
        yield from conflicts(manifest.model_copy(update={"deployment": deployment}))


def _too_much_pinned(manifest: Manifest) -> Iterator[Conflict]:
    """What an engine on GPUs pins counts as memory of its pod."""
    for pods in (pods for pods in plan_pods(manifest) if pods.role.is_worker):
        pinned_bytes = PinnedMemory.of_pod(pods.manifest).host_bytes if is_on_gpu(pods.manifest) else 0
        wanted, resources = wanted_resources(manifest, pods.role)
        if pinned_bytes > wanted.ram_gb * (1 << 30):
            message = (
                f"is less than the {pinned_bytes / (1 << 30):.3g} GiB that an engine's ranks pin of it, "
                f"got {wanted.ram_gb:g}"
            )
            yield Conflict((("deployment", "k8s", "resources", resources, "ram_gb"),), message)
