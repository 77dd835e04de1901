"""Which nodes a pod may run on, and what it takes there."""

from collections.abc import Mapping
from typing import Any

from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest
from llmserve.config.schema.deployment import PodResources
from llmserve.k8s.render.objects import Object, gibibytes, labels
from llmserve.k8s.render.volumes import dram_gb


def is_on_gpu(manifest: Manifest) -> bool:
    """Whether the engines of any model are. `auto` means a GPU here: engines on the CPUs of a cluster have to
    be asked for."""
    engines = (manifest.alone(model).engine for model in manifest.served)
    return any(engine.kind == "vllm" and engine.device != "cpu" for engine in engines)


def placement(manifest: Manifest, role: ProcessRole, model: str = "") -> dict[str, Any]:
    """The fields of a pod's spec that choose its node. An engine for both phases counts as a decode
    engine."""
    label = manifest.deployment.k8s.node_label
    value = ProcessRole.DECODE if role is ProcessRole.AGGREGATED else role
    chosen = {"nodeSelector": {label: value.value}} if label and role.is_worker else {}
    tolerations = _tolerations(manifest, label, value) if role.is_worker else []
    return {
        **chosen,
        **({"tolerations": tolerations} if tolerations else {}),
        "topologySpreadConstraints": _spread(labels(manifest.metadata.name, role, model)),
    }


def _tolerations(manifest: Manifest, label: str | None, role: ProcessRole) -> list[Object]:
    """Tolerates the taints of nodes that are kept for such engines, and those of GPU nodes in clouds."""
    found: list[Object] = []
    if label:
        found.append({"key": label, "operator": "Equal", "value": role.value, "effect": "NoSchedule"})
    if is_on_gpu(manifest):
        key = manifest.deployment.k8s.gpu_resource
        found.append({"key": key, "operator": "Exists", "effect": "NoSchedule"})
    return found


def _spread(pods: Mapping[str, str]) -> list[Object]:
    """Spreads pods over zones and nodes as far as there is room: a pod somewhere is better than none."""
    return [
        {
            "topologyKey": key,
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(pods)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def resources(manifest: Manifest, role: ProcessRole, devices: bool = True) -> Object:
    """Memory is requested and limited alike, so that a node never runs out of it; cores are only requested,
    so that a pod may use idle ones. devices: whether GPUs and the like are included."""
    wanted, _ = wanted_resources(manifest, role)
    memory = wanted.ram_gb + (dram_gb(manifest) if role is ProcessRole.KVMANAGER else 0)
    limits = {"memory": gibibytes(memory)}
    if devices and role.is_worker:
        limits |= _devices(manifest)
    return {"requests": {"cpu": cores(wanted.cpu), **limits}, "limits": limits}


def wanted_resources(manifest: Manifest, role: ProcessRole) -> tuple[PodResources, str]:
    """Returns what a pod of the role requests, and its key in `deployment.k8s.resources`."""
    name = "decode" if role is ProcessRole.AGGREGATED else role.value
    found: PodResources = getattr(manifest.deployment.k8s.resources, name)
    return found, name


def _devices(manifest: Manifest) -> dict[str, str]:
    k8s, found = manifest.deployment.k8s, dict[str, str]()
    if is_on_gpu(manifest):
        found[k8s.gpu_resource] = str(manifest.engine.tensor_parallel * manifest.engine.pipeline_parallel)
    if k8s.rdma_resource:
        found[k8s.rdma_resource] = "1"
    if k8s.hugepages_gb:
        found["hugepages-2Mi"] = f"{k8s.hugepages_gb}Gi"
    return found


def cores(number: float) -> str:
    """A quantity as Kubernetes writes it."""
    return f"{number:g}" if number == int(number) else f"{round(number * 1000)}m"
