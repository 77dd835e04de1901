"""The parts of a plan: processes, and the cores and GPUs that engines share. plan.py makes a plan, `llmserve
apply` prints it, and the runner starts its processes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from llmserve.config.conflict import Conflict
from llmserve.config.schema import EngineConfig, LocalDeployment, Manifest


@dataclass(frozen=True, slots=True)
class ResourceShares:
    """One share for each engine. shared: there was too little, so that some items are in several shares."""

    of: tuple[tuple[int, ...], ...]
    shared: bool


def usable_cores(local: LocalDeployment, available: Sequence[int]) -> tuple[int, ...]:
    """Returns the cores that engines may use. Errors: ManifestError for a core that this machine lacks."""
    if local.cores == "auto":
        return tuple(sorted(available))
    away = [core for core in local.cores if core not in available]
    if away:
        message = f"core {away[0]} is not available here (there are {ranges(available)})"
        raise Conflict.at(message, "deployment.local.cores").as_error()
    return local.cores


def divide(cores: Sequence[int], engines: int) -> ResourceShares:
    """Gives each engine neighbouring cores, as evenly as possible: the first engines get one more. With fewer
    cores than engines, several engines get the same core."""
    if not cores or engines == 0:
        return ResourceShares(((),) * engines, shared=False)
    if len(cores) < engines:
        return ResourceShares(tuple((cores[i % len(cores)],) for i in range(engines)), shared=True)
    each, extra = divmod(len(cores), engines)
    ends = [(i + 1) * each + min(i + 1, extra) for i in range(engines)]
    starts = [0, *ends[:-1]]
    return ResourceShares(tuple(tuple(cores[a:b]) for a, b in zip(starts, ends, strict=True)), shared=False)


def divide_between(cores: Sequence[int], engines: Sequence[bool]) -> ResourceShares:
    """Divides cores as `divide` does, between those engines that take any. engines: whether each does."""
    some = divide(cores, sum(engines))
    shares = iter(some.of)
    return ResourceShares(tuple(next(shares) if takes else () for takes in engines), some.shared)


def deal(gpus: Sequence[int], engines: Sequence[int]) -> ResourceShares:
    """Gives each engine its number of GPUs in turn, and starts again with the first when they run out.
    engines: how many each takes."""
    if not gpus:
        return ResourceShares(((),) * len(engines), shared=False)
    dealt, shares = itertools.cycle(gpus), list[tuple[int, ...]]()
    for count in engines:
        shares.append(tuple(dict.fromkeys(itertools.islice(dealt, count))))
    return ResourceShares(tuple(shares), shared=sum(engines) > len(gpus))


def ranges(cores: Sequence[int]) -> str:
    """Writes cores as taskset and VLLM_CPU_OMP_THREADS_BIND do: `0-3,6`."""
    text: list[str] = []
    ordered = sorted(set(cores))
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        text.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(text)


BINDING_VARIABLE, THREADS_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"
CORES_VARIABLE = "GOMP_CPU_AFFINITY"
# Torch then has large tensors in huge pages, where the kernel lets programs ask for them. Peers copy KV out
# of those in less than half of the time: process_vm_readv, by which nixl and shm copy, pins every page.
HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def forks_engine(engine: EngineConfig) -> bool:
    """Whether a worker on CPUs forks the process of its engine. Not that of an engine that compiles, since
    torch reads the settings of its compiler when it is imported."""
    return engine.enforce_eager is not False


def omp_binding(cores: Sequence[int], ranks: int) -> str:
    """Returns VLLM_CPU_OMP_THREADS_BIND: the cores of each rank of an engine, separated by `|`."""
    return "|".join(ranges(share) for share in divide(cores, ranks).of)


class ProcessRole(StrEnum):
    """CONTROL is router, kvmanager and apiserver in one process (`deployment.local.single_process`).
    MODELMANAGER is a pod of its own (`deployment.k8s.manage_models`); on one machine `llmserve up` does its
    work."""

    KVMANAGER = "kvmanager"
    ROUTER = "router"
    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"
    APISERVER = "apiserver"
    CONTROL = "control"
    MODELMANAGER = "modelmanager"

    @property
    def is_worker(self) -> bool:
        return self in (ProcessRole.PREFILL, ProcessRole.DECODE, ProcessRole.AGGREGATED)

    @property
    def purpose(self) -> str:
        return _PURPOSES[self]


_PURPOSES = {
    ProcessRole.KVMANAGER: "knows which KV block is where, and who may read it",
    ProcessRole.ROUTER: "admits, queues and places requests",
    ProcessRole.PREFILL: "computes prompts, hands their KV over",
    ProcessRole.DECODE: "generates tokens",
    ProcessRole.AGGREGATED: "computes prompts and generates tokens",
    ProcessRole.APISERVER: "answers HTTP: OpenAI and Anthropic APIs",
    ProcessRole.CONTROL: "router, kvmanager and apiserver in one process",
    ProcessRole.MODELMANAGER: "fetches models, starts and ends their engines",
}


class EngineName(NamedTuple):
    """name: that of its worker. model: the name of its model for clients."""

    role: ProcessRole
    name: str
    model: str


def engine_names(manifest: Manifest) -> Iterator[EngineName]:
    """Yields each engine, those of one model after the other. manifest: with all models: those of several
    have the model in the names of their workers."""
    several = len(manifest.served) > 1
    for model in manifest.served:
        prefix = f"{model.slug}-" if several else ""
        for role, count in _engine_counts(manifest.alone(model)).items():
            for index in range(count):
                yield EngineName(role, f"{prefix}{role}-{index}", model.served_name)


def _engine_counts(manifest: Manifest) -> dict[ProcessRole, int]:
    replicas = manifest.deployment.replicas
    if not manifest.deployment.disaggregated:
        return {ProcessRole.AGGREGATED: replicas.decode}
    return {ProcessRole.PREFILL: replicas.prefill, ProcessRole.DECODE: replicas.decode}


_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process: `python -m MODULE` with `arguments(...)`.

    Addresses are HOST:PORT. listen: its gRPC server. http: its HTTP server. direct: its HTTP server on
    loopback, set when it shares `http` with other apiservers. https: both speak TLS. routers, kvmanagers:
    those that it calls, router-0 and kvmanager-0 first (for a router: the other routers). metrics_port: 0 for
    none. cores, gpus: those of its engine; without cores the engine may run on any. env: added to the
    environment. after: the processes that must be ready before it starts. drain_seconds: the time that
    running requests get when it stops; None for the role's default. model: that of a worker.
    """

    role: ProcessRole
    name: str
    module: str
    listen: str | None = None
    http: str | None = None
    direct: str | None = None
    https: bool = False
    routers: tuple[str, ...] = ()
    kvmanagers: tuple[str, ...] = ()
    metrics_port: int = 0
    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    drain_seconds: float | None = None
    model: str = ""

    @property
    def loads_model(self) -> bool:
        """Whether the process takes --model-dir."""
        return self.role.is_worker or self.http is not None

    def arguments(self, manifest: str, run_dir: str, model_dirs: Mapping[str, str] = _NONE) -> list[str]:
        """Returns what follows `python -P -m MODULE`. model_dirs: the directory of each prepared model."""
        options = {
            "--manifest": manifest,
            "--name": self.name,
            "--run-dir": run_dir,
            "--metrics-port": str(self.metrics_port),
            "--listen": self.listen,
            "--http": self.direct or self.http,
            "--router": ",".join(self.routers) or None,
            "--kvmanager": ",".join(self.kvmanagers) or None,
            "--model": self.model or None,
            "--drain-seconds": None if self.drain_seconds is None else f"{self.drain_seconds:g}",
        }
        given = [text for option, value in options.items() if value is not None for text in (option, value)]
        dirs = [text for value in self._directories(model_dirs) for text in ("--model-dir", value)]
        return [*given, *dirs, *self.args]

    def _directories(self, model_dirs: Mapping[str, str]) -> list[str]:
        """Returns the values of --model-dir: DIR, or NAME=DIR for each of several models."""
        if not self.loads_model:
            return []
        names = [self.model] if self.role.is_worker else list(model_dirs)
        if len(names) == 1:
            return [model_dirs[name] for name in names if name in model_dirs]
        return [f"{name}={model_dirs[name]}" for name in names]

    def command(self, manifest: str, run_dir: str, model_dirs: Mapping[str, str] = _NONE) -> list[str]:
        """Returns what follows `python`. -P keeps Python from importing modules of the current directory."""
        return ["-P", "-m", self.module, *self.arguments(manifest, run_dir, model_dirs)]


def fetch_arguments(manifest: str, model: str = "") -> list[str]:
    """Returns what follows `python` to prepare models before a process that needs them starts. model: only
    this one."""
    only = ["--model", model] if model else []
    return ["-P", "-m", "llmserve.models", "pull", "--manifest", manifest, *only]


class PlanRow(NamedTuple):
    """A line of the table of `llmserve apply`."""

    role: str
    name: str
    listen: str
    cores: str
    purpose: str


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """processes: in the order to start them. base_urls: the addresses for clients. notes: warnings for the
    user, one sentence each."""

    processes: tuple[ProcessSpec, ...]
    base_urls: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def describe_rows(self) -> list[PlanRow]:
        return [_row(process) for process in self.processes]


def _row(process: ProcessSpec) -> PlanRow:
    where = f"gpu {ranges(process.gpus)}" if process.gpus else ranges(process.cores) or "any"
    listen = process.http or process.listen or "-"
    return PlanRow(process.role, process.name, listen, where, process.role.purpose)
