"""Plans the pods of a manifest: the processes of the local plan, at the addresses that pods have. Pure.

A pod runs the command that `llmserve up` runs on one machine, so a role gets the same options and variables
in both places. Only names, addresses and ports differ.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from llmserve.config.plan import plan_local
from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.schema.deployment import Deployment

GRPC_PORT = 7100
HTTP_PORT = 8000
METRICS_PORT = 9400
# Kubernetes replaces both by variables of the container.
POD_NAME = "$(POD_NAME)"
POD_IP = "$(POD_IP)"


def service_name(cluster: str, role: ProcessRole, model: str = "") -> str:
    """Returns the name of the Service in front of a role, and of its workload. model: the slug of the model
    of workers, when there are several."""
    return "-".join(filter(None, (cluster, model, role)))


class PodPlan(NamedTuple):
    """The process in the pods of a role. manifest: that of their model alone, for workers. model: its slug
    when there are several or may be, otherwise empty."""

    process: ProcessSpec
    manifest: Manifest
    model: str = ""

    @property
    def role(self) -> ProcessRole:
        return self.process.role


def plan_pods(manifest: Manifest) -> Sequence[PodPlan]:
    """Returns the pods of each role, those of workers once for each model. They are drained for as long as a
    request may take."""
    every = [PodPlan(process, manifest) for process in _processes(manifest)]
    first = next(index for index, one in enumerate(every) if one.role.is_worker)
    before, after = every[:first], [one for one in every[first:] if not one.role.is_worker]
    return [*before, *plan_workers(manifest), *_modelmanager(manifest, every[0].process), *after]


def plan_workers(manifest: Manifest) -> Iterator[PodPlan]:
    """Yields the pods of workers, those of one model after the other."""
    several = len(manifest.served) > 1 or manifest.deployment.k8s.manage_models
    for model in manifest.served:
        alone = manifest.alone(model)
        for process in _processes(alone):
            if process.role.is_worker:
                yield PodPlan(process, alone, model.slug if several else "")


def _modelmanager(manifest: Manifest, like: ProcessSpec) -> Iterator[PodPlan]:
    """like: a process whose addresses it has, too."""
    if manifest.deployment.k8s.manage_models:
        process = replace(
            like,
            role=ProcessRole.MODELMANAGER,
            module="llmserve.runner.models",
            routers=(_address(manifest.metadata.name, ProcessRole.ROUTER),),
            kvmanagers=(),
            env={**like.env, "HF_HUB_OFFLINE": "0"},
        )
        yield PodPlan(process, manifest)


def _processes(manifest: Manifest) -> Iterator[ProcessSpec]:
    plan = plan_local(_one_of_each(manifest), (), itertools.count(1).__next__)
    return (_in_pod(spec, manifest) for spec in plan.processes)


def _one_of_each(manifest: Manifest) -> Manifest:
    """Drops `deployment.local`: the cores, ports and processes of this machine mean nothing in a pod."""
    deployment = Deployment(disaggregated=manifest.deployment.disaggregated)
    return manifest.model_copy(update={"deployment": deployment})


def _in_pod(spec: ProcessSpec, manifest: Manifest) -> ProcessSpec:
    cluster = manifest.metadata.name
    drains = spec.role.is_worker or spec.role is ProcessRole.APISERVER
    return replace(
        spec,
        name=POD_NAME,
        listen=f"{POD_IP}:{GRPC_PORT}" if spec.listen else None,
        http=f"{POD_IP}:{HTTP_PORT}" if spec.http else None,
        routers=(_address(cluster, ProcessRole.ROUTER),) if spec.routers else (),
        kvmanagers=_kvmanagers(manifest) if spec.kvmanagers else (),
        metrics_port=_metrics_port(spec),
        env={**spec.env, **_threads(spec, manifest)},
        after=(),
        drain_seconds=manifest.scheduling.request_timeout_seconds if drains else None,
    )


def _address(cluster: str, role: ProcessRole) -> str:
    return f"{service_name(cluster, role)}:{GRPC_PORT}"


def _kvmanagers(manifest: Manifest) -> tuple[str, ...]:
    """Returns the address of each kvmanager's pod. Blocks are divided between them by the order of this
    list."""
    service = service_name(manifest.metadata.name, ProcessRole.KVMANAGER)
    count = manifest.deployment.replicas.kvmanager
    return tuple(f"{service}-{index}.{service}:{GRPC_PORT}" for index in range(count))


def _metrics_port(spec: ProcessSpec) -> int:
    """Returns 0 for an apiserver: its metrics port is on loopback, and its HTTP port serves /metrics, too."""
    return METRICS_PORT if spec.metrics_port and not spec.http else 0


def _threads(spec: ProcessSpec, manifest: Manifest) -> Mapping[str, str]:
    """Returns the threads of an engine on the CPU. It binds none to cores: only the node knows the cores of a
    pod."""
    engine = manifest.engine
    if not spec.role.is_worker or engine.kind != "vllm" or engine.device != "cpu":
        return {}
    resources = manifest.deployment.k8s.resources
    cpu = (resources.prefill if spec.role is ProcessRole.PREFILL else resources.decode).cpu
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, int(cpu)))}
