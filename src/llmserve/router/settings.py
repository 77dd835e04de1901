"""What the router takes from the manifest."""

from dataclasses import dataclass, field
from typing import NamedTuple

from llmserve.config.adapter_source import parse_adapter_source
from llmserve.config.schema import AdapterSpec, Manifest, Scheduling, ServedModel, TenantBudget
from llmserve.config.wanted_models import entry_of
from llmserve.core.adapters import AdapterTier
from llmserve.core.ids import TenantId
from llmserve.router.adapters.registration import AdapterWish
from llmserve.router.leader.election import ALONE, TermTimes
from llmserve.router.placement.planner import Disaggregate
from llmserve.router.placement.rules import PlacementPolicy, Routing
from llmserve.router.workers.handover import HandoverPolicy
from llmserve.router.workers.speed import SlowLimits
from llmserve.scheduler.ordering import AdapterTurns, ShortestFirst
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits

_DEFAULTS = Scheduling()
_DISAGGREGATE = Disaggregate(_DEFAULTS.disaggregate)


class DeclaredAdapters(NamedTuple):
    """The adapters that the manifest gives to a model."""

    model: str
    wishes: tuple[AdapterWish, ...]


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """log_level: level that workers receive; empty until a reload has changed it, because each process may
    have started with another level (LLMSERVE_LOG_LEVEL). adapters: of each model. allowed_sources: adapters
    that are loaded while the cluster runs come from below these, or from `adapters`. models: name and entry
    of each of the manifest. manages_models: models come and go while the cluster runs."""

    policy: Policy = field(default_factory=Policy)
    heartbeat_seconds: float = _DEFAULTS.worker_heartbeat_seconds
    expiry_seconds: float = _DEFAULTS.worker_expiry_seconds
    prefetch_on_prefix: bool = False
    routing: Routing = _DEFAULTS.routing
    disaggregate: Disaggregate = _DISAGGREGATE
    drain_timeout_seconds: float = _DEFAULTS.drain_timeout_seconds
    slow: SlowLimits = field(default_factory=SlowLimits)
    engine_queue_seconds: float = _DEFAULTS.engine_queue_seconds
    handover: HandoverPolicy = field(default_factory=HandoverPolicy)
    terms: TermTimes = ALONE
    log_level: str = ""
    adapters: tuple[DeclaredAdapters, ...] = ()
    allowed_sources: tuple[str, ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    manages_models: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> "RouterSettings":
        scheduling = manifest.scheduling
        return cls(
            policy=_policy(scheduling, manifest.batches.weight, _limits(manifest)),
            heartbeat_seconds=scheduling.worker_heartbeat_seconds,
            expiry_seconds=scheduling.worker_expiry_seconds,
            prefetch_on_prefix=manifest.kv_cache.prefetch_on_prefix,
            routing=scheduling.routing,
            disaggregate=Disaggregate(scheduling.disaggregate),
            drain_timeout_seconds=scheduling.drain_timeout_seconds,
            engine_queue_seconds=scheduling.engine_queue_seconds,
            slow=SlowLimits(factor=scheduling.slow_worker_factor),
            handover=HandoverPolicy(manifest.transfer.mode, manifest.transfer.push_min_tokens),
            terms=TermTimes() if manifest.state.backend == "redis" else ALONE,
            adapters=tuple(map(_adapters, manifest.served)),
            allowed_sources=() if manifest.lora is None else manifest.lora.allowed_sources,
            models=tuple((one.served_name, entry_of(one)) for one in manifest.served),
            manages_models=manifest.deployment.mode == "local" or manifest.deployment.k8s.manage_models,
        )

    @property
    def placement(self) -> PlacementPolicy:
        return PlacementPolicy(self.routing, self.disaggregate, self.engine_queue_seconds, self.handover)


def _adapters(model: ServedModel) -> DeclaredAdapters:
    return DeclaredAdapters(model.served_name, tuple(map(_wish, model.adapters)))


def _wish(spec: AdapterSpec) -> AdapterWish:
    source = str(parse_adapter_source(spec.source, spec.revision))
    tier = AdapterTier.DISK if spec.prefetch else AdapterTier.SOURCE
    return AdapterWish(spec.name, source, tier, spec.pin)


def _policy(scheduling: Scheduling, background_weight: float, limits: ClusterLimits) -> Policy:
    return Policy(
        max_queued_requests=scheduling.max_queued_requests,
        queue_timeout_seconds=scheduling.queue_timeout_seconds,
        ordering=ShortestFirst(
            seconds_per_1000_tokens=scheduling.srpt_bias,
            aging_seconds=scheduling.aging_seconds,
            priority_seconds=scheduling.priority_seconds,
        ),
        weights={TenantId(one.tenant): one.weight for one in scheduling.weights},
        limits=limits,
        adapters=AdapterTurns(scheduling.adapter_packing, scheduling.aging_seconds),
        background_weight=background_weight,
    )


def _limits(manifest: Manifest) -> ClusterLimits:
    budgets = manifest.budgets
    gbps, hbm = budgets.max_kv_io_gbps, budgets.hbm_gb
    return ClusterLimits(
        max_requests_in_flight=budgets.max_requests_in_flight,
        max_tokens_in_flight=budgets.max_tokens_in_flight,
        hbm_bytes=None if hbm is None else hbm * 2**30,
        kv_io_bytes_per_second=None if gbps is None else gbps * 1e9 / 8,
        tenants=TenantLimits(
            _tenant_limit(budgets.per_tenant),
            {TenantId(one.tenant): _tenant_limit(one) for one in budgets.tenants},
        ),
        shares={one.served_name: one.share for one in manifest.served if one.share < 1},
    )


def _tenant_limit(section: TenantBudget) -> TenantLimit:
    return TenantLimit(
        max_requests_in_flight=section.max_requests_in_flight,
        requests_per_second=section.max_requests_per_second,
        tokens_per_second=section.max_tokens_per_second,
    )
