"""The cluster to simulate: the manifest, with changes from the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmserve.config.lora import lora_of
from llmserve.config.schema import Lora, Manifest, TransferConfig
from llmserve.config.speculation import speculation_of
from llmserve.core.adapters import AdapterReport, AdapterTier
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import TenantId, WorkerId
from llmserve.core.request import WorkerRole
from llmserve.engines.sim.limits import BatchLimits, SimLimits
from llmserve.engines.sim.step import Timing
from llmserve.engines.spec import EngineSpec
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.adapter_loads import AdapterLoads
from llmserve.simulate.adapters import NO_TIERS, AdapterTiers


@dataclass(frozen=True, slots=True)
class Overrides:
    """None: as in the manifest. workers: number of each role. weights: replace all weights of the manifest.
    kv_bytes_per_token, transfer_gbps: of KV that engines fetch from each other; 0: it takes no time.
    adapter_megabytes: size of an adapter."""

    prefill_workers: int | None = None
    decode_workers: int | None = None
    prefill_tokens_per_second: float | None = None
    decode_step_seconds: float | None = None
    decode_seconds_per_sequence: float | None = None
    kv_blocks: int | None = None
    weights: tuple[tuple[TenantId, float], ...] = ()
    kv_bytes_per_token: float = 0.0
    transfer_gbps: float = 0.0
    adapter_megabytes: float = 30.0


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """limits: as the workers register them. batch: limits of their steps. transfer_seconds_per_token: time to
    fetch the KV of one token. push_seconds_per_token: time by which a push makes the computing of one token
    longer. shares_kv: tenants reuse each other's KV. speeds: workers that are faster or
    slower than `timing`, as a factor. adapters: of each worker. min_decode_slots: as the workers register."""

    model: str
    workers: tuple[tuple[WorkerId, WorkerRole], ...]
    limits: SimLimits
    batch: BatchLimits
    timing: Timing
    transfer: TransferConfig
    router: RouterSettings
    kv_bytes_per_token: float = 0.0
    transfer_seconds_per_token: float = 0.0
    push_seconds_per_token: float = 0.0
    shares_kv: bool = False
    speeds: Mapping[WorkerId, float] = field(default_factory=dict)
    adapters: AdapterTiers = NO_TIERS
    min_decode_slots: int = 0

    @classmethod
    def of(cls, manifest: Manifest, over: Overrides) -> "ClusterShape":
        """manifest: of one model. Errors: InvalidRequest when nothing says how long a step takes."""
        limits = _limits(manifest, over)
        return cls(
            model=manifest.model.served_name,
            workers=_workers(manifest, over),
            limits=limits,
            batch=limits.batch,
            timing=_timing(manifest, over),
            transfer=manifest.transfer,
            router=_router(manifest, over),
            kv_bytes_per_token=over.kv_bytes_per_token,
            transfer_seconds_per_token=_transfer_seconds(over),
            shares_kv=manifest.security.kv_sharing == "cluster",
            adapters=_adapters(lora_of(manifest) or Lora(), over),
            min_decode_slots=manifest.engine.min_decode_slots,
        )

    @property
    def weights(self) -> dict[TenantId, float]:
        """Weights of the named tenants; others have 1."""
        return dict(self.router.policy.weights)

    def timing_of(self, worker_id: WorkerId) -> Timing:
        speed, timing = self.speeds.get(worker_id, 1.0), self.timing
        return Timing(
            timing.prefill_tokens_per_second * speed,
            timing.decode_step_seconds / speed,
            timing.decode_seconds_per_sequence / speed,
        )


def _workers(manifest: Manifest, over: Overrides) -> tuple[tuple[WorkerId, WorkerRole], ...]:
    """Named as by `llmserve up`."""
    replicas = manifest.deployment.replicas
    decode = over.decode_workers if over.decode_workers is not None else replicas.decode
    prefill = over.prefill_workers if over.prefill_workers is not None else replicas.prefill
    counts = {WorkerRole.PREFILL: prefill, WorkerRole.DECODE: decode}
    if not manifest.deployment.disaggregated:
        if over.prefill_workers is not None:
            raise InvalidRequest("--prefill: deployment.disaggregated is false, decode workers do both")
        counts = {WorkerRole.AGGREGATED: decode}
    if not all(count > 0 for count in counts.values()):
        raise InvalidRequest(f"no {' or '.join(role for role, n in counts.items() if n < 1)} workers")
    return tuple((WorkerId(f"{role}-{i}"), role) for role, count in counts.items() for i in range(count))


def _limits(manifest: Manifest, over: Overrides) -> SimLimits:
    spec = EngineSpec(
        worker_id=WorkerId("simulated"),
        epoch=1,
        role=WorkerRole.AGGREGATED,
        model_dir=None,
        model_name=manifest.model.served_name,
        model_identity="simulated",
        engine=manifest.engine,
        kv_cache=manifest.kv_cache,
        transfer=manifest.transfer,
    )
    limits = SimLimits.of(spec)
    return replace(limits, total_blocks=over.kv_blocks or limits.total_blocks)


def _timing(manifest: Manifest, over: Overrides) -> Timing:
    own = _own_timing(manifest)
    timing = Timing(
        _first(over.prefill_tokens_per_second, own.prefill_tokens_per_second),
        _first(over.decode_step_seconds, own.decode_step_seconds),
        _first(over.decode_seconds_per_sequence, own.decode_seconds_per_sequence),
    )
    if not timing.step_seconds(1, 0) or not timing.step_seconds(0, 1):
        raise InvalidRequest(
            "how fast are the engines? Say it in engine.sim (prefill_tokens_per_second, decode_step_seconds) "
            "or with --prefill-tokens-per-second and --decode-step-seconds, as measured"
        )
    return timing


def _own_timing(manifest: Manifest) -> Timing:
    """Answers grow by one token in each simulated step. With speculation, a step takes as much less time as
    it would give more tokens."""
    sim, speculation = manifest.engine.sim, speculation_of(manifest)
    timing = Timing(sim.prefill_tokens_per_second, sim.decode_step_seconds, sim.decode_seconds_per_sequence)
    if speculation is None:
        return timing
    proposing = timing.proposing(speculation.tokens, sim.proposed_token_seconds)
    return proposing.for_each_token(speculation.tokens, sim.acceptance)


def _first(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given


def _adapters(lora: Lora, over: Overrides) -> AdapterTiers:
    """The slots and the shared memory of the manifest. Loads take as long as a router expects that has
    measured none."""
    loads, size_bytes = AdapterLoads(), int(over.adapter_megabytes * 1e6)

    def seconds(tier: AdapterTier) -> float:
        return loads.seconds(AdapterReport(0, tier=tier, size_bytes=size_bytes))

    in_memory = int(lora.dram_gb * 2**30 / size_bytes)
    return AdapterTiers(lora.slots, in_memory, seconds(AdapterTier.DRAM), seconds(AdapterTier.DISK))


def _transfer_seconds(over: Overrides) -> float:
    bits = over.kv_bytes_per_token * 8
    return bits / (over.transfer_gbps * 1e9) if over.transfer_gbps else 0.0


def _router(manifest: Manifest, over: Overrides) -> RouterSettings:
    settings = RouterSettings.of(manifest)
    if not over.weights:
        return settings
    return replace(settings, policy=replace(settings.policy, weights=dict(over.weights)))
