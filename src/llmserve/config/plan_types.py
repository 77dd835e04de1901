"""The plan of a local deployment: made by plan.py, printed by `llmserve apply`, started by the runner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from llmserve.config.conflict import Conflict
from llmserve.config.schema import LocalDeployment


@dataclass(frozen=True, slots=True)
class ResourceShares:
    """One share for each taker. shared: there was too little, and some things are in several shares."""

    of: tuple[tuple[int, ...], ...]
    shared: bool


def usable_cores(local: LocalDeployment, available: Sequence[int]) -> tuple[int, ...]:
    """The cores that the manifest lets the engines use. Errors: ManifestError for one that is not there."""
    if local.cores == "auto":
        return tuple(sorted(available))
    away = [core for core in local.cores if core not in available]
    if away:
        message = f"core {away[0]} is not available here (there are {ranges(available)})"
        raise Conflict((("deployment", "local", "cores"),), message).as_error()
    return local.cores


def divide(things: Sequence[int], takers: int) -> ResourceShares:
    """Neighbouring cores for each taker, as evenly as it goes, the first ones getting what is left over.
    With fewer things than takers they take turns."""
    if not things or takers == 0:
        return ResourceShares(((),) * takers, shared=False)
    if len(things) < takers:
        return ResourceShares(tuple((things[i % len(things)],) for i in range(takers)), shared=True)
    each, extra = divmod(len(things), takers)
    ends = [(i + 1) * each + min(i + 1, extra) for i in range(takers)]
    starts = [0, *ends[:-1]]
    return ResourceShares(tuple(tuple(things[a:b]) for a, b in zip(starts, ends, strict=True)), shared=False)


def deal(things: Sequence[int], takers: int, each: int) -> ResourceShares:
    """Exactly `each` things (GPUs) for each taker, in turn; over again when they run out."""
    if not things:
        return ResourceShares(((),) * takers, shared=False)
    shares = tuple(
        tuple(dict.fromkeys(things[(i * each + k) % len(things)] for k in range(each))) for i in range(takers)
    )
    return ResourceShares(shares, shared=takers * each > len(things))


def ranges(cores: Sequence[int]) -> str:
    """`0-3,6`: as taskset and VLLM_CPU_OMP_THREADS_BIND write it."""
    text: list[str] = []
    ordered = sorted(set(cores))
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        text.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(text)


def omp_binding(cores: Sequence[int], ranks: int) -> str:
    """VLLM_CPU_OMP_THREADS_BIND: the cores of each rank of an engine, the ranks separated by `|`."""
    return "|".join(ranges(share) for share in divide(cores, ranks).of)


class ProcessRole(StrEnum):
    """CONTROL is router, kvmanager and apiserver in one process (`deployment.local.single_process`)."""

    KVMANAGER = "kvmanager"
    ROUTER = "router"
    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"
    APISERVER = "apiserver"
    CONTROL = "control"

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
}


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process: `python -m MODULE` with `arguments(...)`.

    Addresses are HOST:PORT: `listen` its own gRPC, `http` its HTTP, `direct` its HTTP on loopback that nobody
    else answers, when it shares `http` with others, `routers` and `kvmanagers` those it talks to (a router:
    the others), router-0 and kvmanager-0 first. metrics_port 0: none. `cores` and `gpus` are the engine's
    own; without cores it may run on any. `env` is added to the environment. It is started when all processes
    named in `after` are ready. drain_seconds: for running requests at its stop; None: the role's own default.
    """

    role: ProcessRole
    name: str
    module: str
    listen: str | None = None
    http: str | None = None
    direct: str | None = None
    routers: tuple[str, ...] = ()
    kvmanagers: tuple[str, ...] = ()
    metrics_port: int = 0
    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    drain_seconds: float | None = None

    @property
    def loads_model(self) -> bool:
        """Whether it takes --model-dir."""
        return self.role.is_worker or self.http is not None

    def arguments(self, manifest: str, run_dir: str, model_dir: str | None = None) -> list[str]:
        """What follows `python -P -m MODULE`."""
        options = {
            "--manifest": manifest,
            "--name": self.name,
            "--run-dir": run_dir,
            "--metrics-port": str(self.metrics_port),
            "--listen": self.listen,
            "--http": self.direct or self.http,
            "--router": ",".join(self.routers) or None,
            "--kvmanager": ",".join(self.kvmanagers) or None,
            "--model-dir": model_dir if self.loads_model else None,
            "--drain-seconds": None if self.drain_seconds is None else f"{self.drain_seconds:g}",
        }
        given = [text for option, value in options.items() if value is not None for text in (option, value)]
        return [*given, *self.args]

    def command(self, manifest: str, run_dir: str, model_dir: str | None = None) -> list[str]:
        """What follows `python`. -P: the current directory holds no modules of ours."""
        return ["-P", "-m", self.module, *self.arguments(manifest, run_dir, model_dir)]


def fetch_arguments(manifest: str) -> list[str]:
    """What follows `python` to prepare the model before a process that needs it is started."""
    return ["-P", "-m", "llmserve.models", "fetch", "--manifest", manifest]


class PlanRow(NamedTuple):
    """A line of the table of `llmserve apply`."""

    role: str
    name: str
    listen: str
    cores: str
    purpose: str


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """`processes` are in the order to start them. `notes` are warnings for the user, one sentence each.
    `base_urls` is where clients connect."""

    processes: tuple[ProcessSpec, ...]
    base_urls: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def describe_rows(self) -> list[PlanRow]:
        return [_row(process) for process in self.processes]


def _row(process: ProcessSpec) -> PlanRow:
    where = f"gpu {ranges(process.gpus)}" if process.gpus else ranges(process.cores) or "any"
    listen = process.http or process.listen or "-"
    return PlanRow(process.role, process.name, listen, where, process.role.purpose)
