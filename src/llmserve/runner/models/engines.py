"""Plans the engines of one more model beside those that run. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmserve.config.plan import ProcessSpec, plan_local
from llmserve.config.plan_types import usable_cores
from llmserve.config.schema import Manifest


@dataclass(frozen=True, slots=True)
class MachineParts:
    """cores, gpus: the ids that this machine offers. pick_port: returns a free port on loopback."""

    cores: Sequence[int]
    gpus: Sequence[int]
    pick_port: Callable[[], int]


def plan_model(
    manifest: Manifest, machine: MachineParts, like: ProcessSpec, staying: Sequence[ProcessSpec]
) -> list[ProcessSpec]:
    """manifest: of the model alone. like: a worker of the cluster, whose routers and KV managers these have,
    too. staying: the workers that stay; their cores and GPUs are taken only when no others are left. Errors:
    ManifestError, StartFailed, as plan_local."""
    local = manifest.deployment.local
    cores = usable_cores(local, machine.cores)
    used_cores = {core for worker in staying for core in worker.cores}
    used_gpus = {gpu for worker in staying for gpu in worker.gpus}
    free_cores = [core for core in cores if core not in used_cores] or cores
    gpus = sorted(machine.gpus, key=lambda gpu: gpu in used_gpus)
    anywhere = manifest.deployment.model_copy(update={"local": local.model_copy(update={"cores": "auto"})})
    alone = manifest.model_copy(update={"deployment": anywhere})
    slug = manifest.model.slug
    return [
        replace(
            worker,
            name=f"{slug}-{worker.name}",
            routers=like.routers,
            kvmanagers=like.kvmanagers,
            after=like.after,
        )
        for worker in plan_local(alone, free_cores, machine.pick_port, gpus).processes
        if worker.role.is_worker
    ]
