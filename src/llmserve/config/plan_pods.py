"""The manifest as pods: the processes of the local plan, at the addresses that pods have. Pure.

There is one source of commands. A pod runs what `llmserve up` starts on one machine, so a flag or a variable
that a role gets there it gets here too; only names, addresses and ports are others.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace

from llmserve.config.plan import plan_local
from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.schema.deployment import Deployment

GRPC_PORT = 7100
HTTP_PORT = 8000
METRICS_PORT = 9400
# Kubernetes puts the values in: both are variables of the container.
POD_NAME = "$(POD_NAME)"
POD_IP = "$(POD_IP)"


def service_name(cluster: str, role: ProcessRole) -> str:
    """Of the Service in front of a role, and of its workload."""
    return f"{cluster}-{role}"


def plan_pods(manifest: Manifest) -> Mapping[ProcessRole, ProcessSpec]:
    """The process in a pod of each role. Drained for as long as a request may take."""
    plan = plan_local(_one_of_each(manifest), (), itertools.count(1).__next__)
    return {spec.role: _in_pod(spec, manifest) for spec in plan.processes}


def _one_of_each(manifest: Manifest) -> Manifest:
    """`deployment.local` is about this machine: its cores, ports and processes mean nothing there."""
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
    """Blocks are placed over them by their places in this list. Each pod has a name of its own."""
    service = service_name(manifest.metadata.name, ProcessRole.KVMANAGER)
    count = manifest.deployment.replicas.kvmanager
    return tuple(f"{service}-{index}.{service}:{GRPC_PORT}" for index in range(count))


def _metrics_port(spec: ProcessSpec) -> int:
    """An apiserver's own port is on loopback, where nobody can scrape it: its HTTP port has /metrics too."""
    return METRICS_PORT if spec.metrics_port and not spec.http else 0


def _threads(spec: ProcessSpec, manifest: Manifest) -> Mapping[str, str]:
    """An engine on the CPU may not bind threads to cores: which ones its pod has, only the node knows."""
    engine = manifest.engine
    if not spec.role.is_worker or engine.kind != "vllm" or engine.device != "cpu":
        return {}
    resources = manifest.deployment.k8s.resources
    cpu = (resources.prefill if spec.role is ProcessRole.PREFILL else resources.decode).cpu
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, int(cpu)))}
