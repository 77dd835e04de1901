"""Plans the processes of a manifest on one machine. Pure: cores, GPUs and free ports are arguments."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from llmserve.config.conflict import Conflict, Path
from llmserve.config.environment import engine_variables
from llmserve.config.lora import may_ask_hub
from llmserve.config.plan_types import (
    BINDING_VARIABLE,
    CORES_VARIABLE,
    HUGE_PAGES_VARIABLE,
    THREADS_VARIABLE,
    LocalPlan,
    PlanRow,
    ProcessRole,
    ProcessSpec,
    ResourceShares,
    deal,
    divide_between,
    engine_names,
    forks_engine,
    omp_binding,
    usable_cores,
)
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import VllmOnly, marker, path_text
from llmserve.config.several_models import conflict_in_file, in_file
from llmserve.core.addresses import host_of, join_address
from llmserve.core.errors import StartFailed

__all__ = ["LocalPlan", "PlanRow", "ProcessRole", "ProcessSpec", "plan_local"]

LOOPBACK = "127.0.0.1"
_PORT_ATTEMPTS = 1000


def plan_local(
    manifest: Manifest, cores: Sequence[int], pick_port: Callable[[], int], gpus: Sequence[int] = ()
) -> LocalPlan:
    """Plans `deployment.mode: local`. cores, gpus: the ids that this machine offers. pick_port: returns a
    free port on loopback. Errors: ManifestError for cores or GPUs that this machine lacks; StartFailed
    without free ports."""
    return _Planner(manifest, cores, pick_port, gpus).plan()


class _Planner:
    """Makes one plan. The roles talk over loopback; only the HTTP API listens where the manifest says."""

    def __init__(
        self, manifest: Manifest, cores: Sequence[int], pick_port: Callable[[], int], gpus: Sequence[int]
    ) -> None:
        self._manifest = manifest
        self._local = manifest.deployment.local
        self._ports = _Ports(pick_port, (*self._fixed_ports(), manifest.observability.port))
        # Each engine with the manifest of its model alone.
        self._engines = tuple((one, manifest.for_model(one.model)) for one in engine_names(manifest))
        on_gpu = [runs_on_gpu(alone, gpus) for _, alone in self._engines]
        self._gpus = deal(gpus, list(self._ranks_on_gpu(gpus)))
        on_cpu = [
            alone.engine.kind == "vllm" and not gpu
            for (_, alone), gpu in zip(self._engines, on_gpu, strict=True)
        ]
        self._cores = divide_between(usable_cores(self._local, cores) if any(on_cpu) else (), on_cpu)

    def _ranks_on_gpu(self, gpus: Sequence[int]) -> Iterator[int]:
        """Yields how many GPUs each engine takes. Errors: ManifestError."""
        for one, alone in self._engines:
            on_gpu, ranks = runs_on_gpu(alone, gpus), alone.engine.tensor_parallel
            if on_gpu and 0 < len(gpus) < ranks:
                entry, message = (
                    self._manifest.entry(one.model),
                    f"needs {ranks} GPUs, and there are {len(gpus)}",
                )
                found = Conflict.at(message, "engine.tensor_parallel")
                raise conflict_in_file(self._manifest, entry, found).as_error()
            yield ranks if on_gpu else 0

    def plan(self) -> LocalPlan:
        https = [self._http(index) for index in range(self._http_ports)]
        routers = [self._ports.address() for _ in range(self._manifest.deployment.replicas.router)]
        kvmanagers = [self._ports.address() for _ in range(self._manifest.deployment.replicas.kvmanager)]
        if self._local.single_process:
            processes = [self._control(https[0], routers[0], kvmanagers[0])]
            processes += self._workers(routers, kvmanagers, after=("control-0",))
        else:
            processes = self._services(routers, kvmanagers)
            after = tuple(process.name for process in processes)
            processes += self._workers(routers, kvmanagers, after)
            processes += [self._apiserver(index, https, routers) for index in range(self._apiservers)]
        return LocalPlan(tuple(processes), tuple(map(self._base_url, https)), tuple(self._notes()))

    def _services(self, routers: Sequence[str], kvmanagers: Sequence[str]) -> list[ProcessSpec]:
        addresses = {ProcessRole.KVMANAGER: kvmanagers, ProcessRole.ROUTER: routers}
        modules = {ProcessRole.KVMANAGER: "llmserve.kvstore", ProcessRole.ROUTER: "llmserve.router"}
        return [
            ProcessSpec(
                role=role,
                name=f"{role}-{index}",
                module=modules[role],
                listen=address,
                kvmanagers=tuple(kvmanagers) if role is ProcessRole.ROUTER else (),
                routers=tuple(other for other in routers if other != address and role is ProcessRole.ROUTER),
                metrics_port=self._metrics_port(),
                env=self._common_env(),
            )
            for role in addresses
            for index, address in enumerate(addresses[role])
        ]

    @property
    def _apiservers(self) -> int:
        return self._manifest.deployment.replicas.apiserver

    @property
    def _http_ports(self) -> int:
        return self._apiservers if self._local.separate_ports else 1

    def _apiserver(self, index: int, https: Sequence[str], routers: Sequence[str]) -> ProcessSpec:
        is_shared = len(https) < self._apiservers
        return ProcessSpec(
            role=ProcessRole.APISERVER,
            name=f"apiserver-{index}",
            module="llmserve.apiserver",
            http=https[0 if is_shared else index],
            direct=self._ports.address() if is_shared else None,
            https=self._manifest.security.tls is not None,
            routers=tuple(routers),
            metrics_port=self._metrics_port(),
            env=self._apiserver_env(),
            after=tuple(f"router-{index}" for index in range(len(routers))),
        )

    def _control(self, http: str, router: str, kvmanager: str) -> ProcessSpec:
        """router, kvmanager: the addresses at which the process serves these roles."""
        return ProcessSpec(
            role=ProcessRole.CONTROL,
            name="control-0",
            module="llmserve.control",
            http=http,
            https=self._manifest.security.tls is not None,
            routers=(router,),
            kvmanagers=(kvmanager,),
            metrics_port=self._metrics_port(),
            env=self._apiserver_env(),
        )

    def _workers(
        self, routers: Sequence[str], kvmanagers: Sequence[str], after: tuple[str, ...]
    ) -> list[ProcessSpec]:
        return [
            ProcessSpec(
                role=role,
                name=name,
                module="llmserve.workers",
                listen=self._ports.address(),
                routers=tuple(routers),
                kvmanagers=tuple(kvmanagers),
                metrics_port=self._metrics_port(),
                cores=cores,
                gpus=gpus,
                env=self._worker_env(alone) | _engine_env(alone, cores, gpus) | engine_variables(alone),
                args=("--role", role.value),
                after=after,
                model=model,
            )
            for ((role, name, model), alone), cores, gpus in zip(
                self._engines, self._cores.of, self._gpus.of, strict=True
            )
        ]

    def _worker_env(self, alone: Manifest) -> dict[str, str]:
        """Adapters are fetched while a worker runs."""
        return self._common_env() | ({"HF_HUB_OFFLINE": "0"} if may_ask_hub(alone) else {})

    def _common_env(self) -> dict[str, str]:
        return {
            "HF_HUB_OFFLINE": "1",  # the model is there: nobody needs to ask a hub for anything
            "LLMSERVE_LOG_LEVEL": self._manifest.observability.log_level,
            "VLLM_NO_USAGE_STATS": "1",
        }

    def _apiserver_env(self) -> dict[str, str]:
        """An apiserver renders and tokenizes in threads of its own: those of torch and the tokenizers only
        cost CPU."""
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return self._common_env() | threads | engine_variables(self._manifest)

    def _metrics_port(self) -> int:
        return self._ports.pick() if self._manifest.observability.metrics else 0

    def _fixed_ports(self) -> range:
        first = self._local.port
        return range(first, first + self._http_ports) if first else range(0)

    def _http(self, index: int) -> str:
        port = self._local.port + index if self._local.port else self._ports.pick()
        return join_address(self._local.host, port)

    def _base_url(self, http: str) -> str:
        """Returns the address for clients on this machine."""
        host, port = host_of(http), http.rpartition(":")[2]
        scheme = "http" if self._manifest.security.tls is None else "https"
        return f"{scheme}://{join_address(LOOPBACK if host in _EVERYWHERE else host, port)}"

    def _notes(self) -> Iterator[str]:
        yield from _sharing_note(self._cores, "cores", "expect slow tokens")
        yield from _sharing_note(self._gpus, "GPUs", "kv_cache.memory_gb must fit several times")
        if self._local.host in _EVERYWHERE and not self._manifest.security.asks_callers:
            yield "The API is open to the network and security asks for no keys: everybody may use it."
        yield from _unused_keys(self._manifest)


def _engine_env(manifest: Manifest, cores: tuple[int, ...], gpus: tuple[int, ...]) -> dict[str, str]:
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    if not cores:
        return {}
    env = {
        BINDING_VARIABLE: omp_binding(cores, manifest.engine.tensor_parallel),
        # For the processes around the ranks; each rank gets its own number from vLLM.
        THREADS_VARIABLE: "1",
        HUGE_PAGES_VARIABLE: "1",
    }
    if forks_engine(manifest.engine) and manifest.engine.tensor_parallel == 1:
        # The worker begins with what vLLM gives to the process that computes: engines/vllm/early_process.py.
        env |= {THREADS_VARIABLE: str(len(cores)), CORES_VARIABLE: " ".join(map(str, sorted(cores)))}
    memory = manifest.kv_cache.memory_gb
    if memory.is_integer():  # vLLM reads whole numbers; the engine gets the bytes by another way, too
        env["VLLM_CPU_KVCACHE_SPACE"] = str(int(memory))
    return env


class _Ports:
    """Picks free ports, none of them twice."""

    def __init__(self, pick_port: Callable[[], int], taken: Sequence[int]) -> None:
        self._pick_port = pick_port
        self._taken = set(taken)

    def pick(self) -> int:
        for _ in range(_PORT_ATTEMPTS):
            port = self._pick_port()
            if port not in self._taken:
                self._taken.add(port)
                return port
        raise StartFailed("no free port was found on this machine")

    def address(self) -> str:
        return f"{LOOPBACK}:{self.pick()}"


_EVERYWHERE = ("0.0.0.0", "::")


def runs_on_gpu(manifest: Manifest, gpus: Sequence[int]) -> bool:
    """gpus: those of the machine on which the engines run."""
    engine = manifest.engine
    return engine.kind == "vllm" and (engine.device == "cuda" or (engine.device == "auto" and bool(gpus)))


def _sharing_note(shares: ResourceShares, what: str, so: str) -> Iterator[str]:
    if shares.shared:
        engines = sum(1 for share in shares.of if share)
        distinct = len({one for share in shares.of for one in share})
        yield f"{engines} engines share {distinct} {what if distinct > 1 else what[:-1]}: {so}."


def _unused_keys(manifest: Manifest) -> Iterator[str]:
    """Yields notes on keys that were set for the other kind of engine: of one model, or of all of them."""
    found = Counter(
        (in_file(manifest, model, path), why)
        for model in manifest.served
        for path, why in _unused(manifest.alone(model))
    )
    for (path, why), models in found.items():
        if path[0] == "models" or models == len(manifest.served):
            yield f"{path_text(path)} {why}"


def _unused(manifest: Manifest) -> Iterator[tuple[Path, str]]:
    if manifest.engine.kind == "vllm":
        if "sim" in manifest.engine.model_fields_set:
            yield ("engine", "sim"), "is set, but engine.kind is vllm: it has no effect."
        return
    for name, section in (("engine", manifest.engine), ("kv_cache", manifest.kv_cache)):
        for key in sorted(section.model_fields_set):
            if marker(type(section).model_fields[key], VllmOnly) is not None:
                yield (name, key), "has no effect on the simulated engine."
