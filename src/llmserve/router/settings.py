"""What the router takes from the manifest, and the controller made of it."""

import random
from dataclasses import dataclass, field
from typing import Literal

from llmserve.config.schema import Budgets, Manifest, Scheduling, TenantBudget
from llmserve.core.clock import Clock
from llmserve.core.ids import TenantId
from llmserve.router.baselines import LeastLoaded, RoundRobin
from llmserve.router.controller import AdmissionLimits, Controller
from llmserve.router.filters import HasFreeSeat, NotBackedUp, NotExcluded
from llmserve.router.kv_aware import KvAware
from llmserve.router.learner import Learner
from llmserve.router.mandate import ALONE, TermTimes
from llmserve.router.membership import Membership
from llmserve.router.pace import Paces
from llmserve.router.plan import Chooser, Disaggregate, Planner
from llmserve.router.prefix_index import PrefixIndex
from llmserve.router.prefixes import Prefixes
from llmserve.router.scorers import FreeSeats, ShortEngineQueue
from llmserve.router.slow import NotSlow, SlowBook, SlowLimits
from llmserve.scheduler.ordering import ShortestFirst
from llmserve.scheduler.resources import Limits
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits

# What an engine's own queue weighs against free seats: it is a heartbeat old, and partly the same.
_ENGINE_QUEUE_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """no_worker_grace_seconds: how long a request waits for a role that has no worker at all; longer
    than workers need to find a restarted router."""

    policy: Policy = field(default_factory=Policy)
    heartbeat_seconds: float = 1.0
    expiry_seconds: float = 4.0
    no_worker_grace_seconds: float = 10.0
    prefetch_on_prefix: bool = False
    routing: Literal["kv_aware", "least_loaded", "round_robin"] = "kv_aware"
    disaggregate: Disaggregate = Disaggregate.AUTO
    drain_timeout_seconds: float = 60.0
    slow: SlowLimits = field(default_factory=SlowLimits)
    engine_queue_seconds: float = 0.5
    terms: TermTimes = ALONE

    @classmethod
    def of(cls, manifest: Manifest) -> "RouterSettings":
        scheduling = manifest.scheduling
        return cls(
            policy=_policy(scheduling, manifest.budgets),
            heartbeat_seconds=scheduling.worker_heartbeat_seconds,
            expiry_seconds=scheduling.worker_expiry_seconds,
            prefetch_on_prefix=manifest.kv_cache.prefetch_on_prefix,
            routing=scheduling.routing,
            disaggregate=Disaggregate(scheduling.disaggregate),
            drain_timeout_seconds=scheduling.drain_timeout_seconds,
            engine_queue_seconds=scheduling.engine_queue_seconds,
            slow=SlowLimits(factor=scheduling.slow_worker_factor),
            terms=TermTimes() if manifest.state.backend == "redis" else ALONE,
        )

    @property
    def admission(self) -> AdmissionLimits:
        return AdmissionLimits(self.policy.queue_timeout_seconds, self.no_worker_grace_seconds)


def _policy(scheduling: Scheduling, budgets: Budgets) -> Policy:
    return Policy(
        max_queued_requests=scheduling.max_queued_requests,
        queue_timeout_seconds=scheduling.queue_timeout_seconds,
        ordering=ShortestFirst(
            seconds_per_1000_tokens=scheduling.srpt_bias,
            aging_seconds=scheduling.aging_seconds,
            priority_seconds=scheduling.priority_seconds,
        ),
        weights={TenantId(one.tenant): one.weight for one in scheduling.weights},
        limits=_limits(budgets),
    )


def _limits(budgets: Budgets) -> Limits:
    gbps, hbm = budgets.max_kv_io_gbps, budgets.hbm_gb
    return Limits(
        max_requests_in_flight=budgets.max_requests_in_flight,
        max_tokens_in_flight=budgets.max_tokens_in_flight,
        hbm_bytes=None if hbm is None else hbm * 2**30,
        kv_io_bytes_per_second=None if gbps is None else gbps * 1e9 / 8,
        tenants=TenantLimits(
            _tenant_limit(budgets.per_tenant),
            {TenantId(one.tenant): _tenant_limit(one) for one in budgets.tenants},
        ),
    )


def _tenant_limit(section: TenantBudget) -> TenantLimit:
    return TenantLimit(
        max_requests_in_flight=section.max_requests_in_flight,
        requests_per_second=section.max_requests_per_second,
        tokens_per_second=section.max_tokens_per_second,
    )


def build_controller(
    settings: RouterSettings, clock: Clock, rng: random.Random, index: PrefixIndex | None = None
) -> Controller:
    """index: filled by whoever follows the KV managers; none: nothing is known of blocks."""
    membership, paces = Membership(clock, expiry_seconds=settings.expiry_seconds), Paces()
    slow = SlowBook(clock, settings.slow)
    planner = Planner(
        membership,
        filters=(
            NotExcluded(),
            HasFreeSeat(),
            NotBackedUp(clock, settings.engine_queue_seconds),
            NotSlow(slow),
        ),
        chooser=_chooser(settings, paces, clock, rng),
        disaggregate=settings.disaggregate,
    )
    prefixes = Prefixes(clock, index or PrefixIndex(), membership, prefetches=settings.prefetch_on_prefix)
    return Controller(
        clock,
        settings.admission,
        membership=membership,
        planner=planner,
        scheduler=Scheduler(clock, settings.policy),
        prefixes=prefixes,
        learner=Learner(paces),
        slow=slow,
    )


def _chooser(settings: RouterSettings, paces: Paces, clock: Clock, rng: random.Random) -> Chooser:
    match settings.routing:
        case "kv_aware":
            return KvAware(paces, clock, rng)
        case "least_loaded":
            return LeastLoaded(((1.0, FreeSeats()), (_ENGINE_QUEUE_WEIGHT, ShortEngineQueue())), rng)
        case "round_robin":
            return RoundRobin()
