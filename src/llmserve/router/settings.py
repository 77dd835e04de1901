"""What the router takes from the manifest, and the controller made of it."""

import random
from dataclasses import dataclass

from llmserve.config.schema import Budgets, Scheduling
from llmserve.core.clock import Clock
from llmserve.router.controller import AdmissionLimits, Controller
from llmserve.router.filters import HasFreeSeat, NotExcluded
from llmserve.router.membership import Membership
from llmserve.router.plan import Planner
from llmserve.router.scorers import FreeSeats, ShortEngineQueue
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.budgets import RequestBudget
from llmserve.scheduler.fairness import FifoFairness
from llmserve.scheduler.ordering import FifoOrdering

# What an engine's own queue weighs against free seats: it is a heartbeat old, and partly the same.
_ENGINE_QUEUE_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """max_requests_in_flight None: what the registered workers can decode at once.
    no_worker_grace_seconds: how long a request waits for a role that has no worker at all; longer
    than workers need to find a restarted router."""

    max_queued_requests: int = 1024
    queue_timeout_seconds: float = 60.0
    heartbeat_seconds: float = 1.0
    expiry_seconds: float = 4.0
    no_worker_grace_seconds: float = 10.0
    max_requests_in_flight: int | None = None

    @classmethod
    def of(cls, scheduling: Scheduling, budgets: Budgets) -> "RouterSettings":
        return cls(
            max_queued_requests=scheduling.max_queued_requests,
            queue_timeout_seconds=scheduling.queue_timeout_seconds,
            heartbeat_seconds=scheduling.worker_heartbeat_seconds,
            expiry_seconds=scheduling.worker_expiry_seconds,
            max_requests_in_flight=budgets.max_requests_in_flight,
        )


def build_controller(settings: RouterSettings, clock: Clock, rng: random.Random) -> Controller:
    membership = Membership(clock, expiry_seconds=settings.expiry_seconds)
    planner = Planner(
        membership,
        filters=(NotExcluded(), HasFreeSeat()),
        scorers=((1.0, FreeSeats()), (_ENGINE_QUEUE_WEIGHT, ShortEngineQueue())),
        rng=rng,
    )
    budget = RequestBudget(settings.max_requests_in_flight or 0)
    queue = AdmissionQueue(
        clock,
        max_queued=settings.max_queued_requests,
        longest_retry_seconds=settings.queue_timeout_seconds,
        budgets=(budget,),
        fairness=FifoFairness(),
        ordering=FifoOrdering(),
    )
    limits = AdmissionLimits(
        settings.queue_timeout_seconds, settings.no_worker_grace_seconds, settings.max_requests_in_flight
    )
    return Controller(clock, limits, membership=membership, planner=planner, queue=queue, budget=budget)
