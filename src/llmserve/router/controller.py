"""The whole state of the router. Pure: each method takes one event and returns its effects.

One thread calls it, and a method ends before the next begins, so nobody sees a half-done change. After
every event the caller delivers the effects, compares `cluster_version`, and asks `next_wake` when to call
`tick`.
"""

import random
from collections.abc import Iterable

from llmserve.config.wanted_models import AnsweringModels
from llmserve.core.adapters import AdapterReports
from llmserve.core.clock import Clock
from llmserve.core.ids import ApiserverId, WorkerId
from llmserve.core.request import EngineLoad
from llmserve.core.stats import SchedulerStats
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.adapters.snapshot import AdapterSnapshot
from llmserve.router.events import Effect, Exit, HeldRequest, Incarnation
from llmserve.router.models.book import ModelBook
from llmserve.router.models.snapshot import ModelBookSnapshot
from llmserve.router.placement.planner import Planner
from llmserve.router.placement.rules import PlacementRules
from llmserve.router.prefix.index import PrefixIndex
from llmserve.router.prefix.lookup import PrefixLookup
from llmserve.router.requests import Requests
from llmserve.router.sessions import PlacementHold, RouterSession, Work
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.speed import WorkerSpeeds
from llmserve.router.workers.worker import ClusterMember, DrainOrder, WorkerSlots, WorkerSpec
from llmserve.scheduler.scheduler import Scheduler
from llmserve.scheduler.snapshot import SchedulerSnapshot


class Controller:
    """Composition root of the deciding half. index: whoever follows the KV managers fills it; None: nothing
    is known of cached blocks. requests: takes the events of requests. adapters,
    models: which there are. membership, prefixes and speeds are public for reading."""

    def __init__(
        self, settings: RouterSettings, clock: Clock, rng: random.Random, index: PrefixIndex | None = None
    ) -> None:
        self._clock = clock
        self.membership = membership = ClusterMembership(clock, expiry_seconds=settings.expiry_seconds)
        self.speeds = speeds = WorkerSpeeds(clock, settings.slow)
        self.prefixes = prefixes = PrefixLookup(
            clock, index or PrefixIndex(), membership, settings.prefetch_on_prefix
        )
        self._scheduler = Scheduler(clock, settings.policy)
        self._queue = self._scheduler.queue
        self._placement_rules = PlacementRules(clock, rng, speeds)
        self._planner = Planner(membership, self._placement_rules.rules(settings.placement))
        self.adapters = AdapterBook(clock, membership, lambda digest: self._entries.users(digest))
        self.requests = Requests(
            clock, self._scheduler, self._planner, membership, prefixes, speeds, self.adapters
        )
        self._entries = self.requests.entries
        self.models = ModelBook(
            clock,
            self._entries.of_model,
            lambda: (session.models for session in self._entries.sessions()),
            drain_seconds=settings.drain_timeout_seconds,
            manages=settings.manages_models,
        )
        self._declared, self._declared_models = settings.adapters, settings.models

    def __repr__(self) -> str:
        return f"<Controller apiservers={self.apiservers} {self._queue!r} {self.membership!r}>"

    @property
    def cluster_version(self) -> int:
        """Changes whenever apiservers need a new view of the cluster."""
        return self.membership.version

    @property
    def waiting_requests(self) -> int:
        return self._queue.waiting_requests

    @property
    def wants_places(self) -> bool:
        """Whether a place that is given back is to be heard of soon: requests wait for one, or none may wait
        and would be refused."""
        return self.waiting_requests > 0 or not self._scheduler.policy.max_queued_requests

    @property
    def running_requests(self) -> int:
        return self._queue.running_requests

    @property
    def apiservers(self) -> int:
        return self._entries.apiservers

    def scheduler_stats(self) -> SchedulerStats:
        """Tenants and budgets as they are now."""
        return self._scheduler.stats()

    def next_wake(self) -> float | None:
        """Time on the clock at which tick has something to do; None: not before the next event."""
        times = (
            self.membership.next_expiry(),
            self._queue.next_deadline(),
            self._queue.next_turn(),
            self.prefixes.hash_check.next_due(),
            self.requests.takeover.settled_at(),
            self.adapters.lifecycle.next_due(),
            self.models.next_due(),
        )
        return min([time for time in times if time is not None], default=None)

    # -- another router's term before this one

    def snapshot(self) -> SchedulerSnapshot:
        """State of the scheduler that the next leader needs and cannot learn from anyone else. Adapters and
        models have snapshots of their own."""
        return self._scheduler.snapshot()

    def take_over(
        self,
        snapshot: SchedulerSnapshot | None,
        settle_seconds: float,
        adapters: AdapterSnapshot | None = None,
        epoch: int = 0,
        models: ModelBookSnapshot | None = None,
    ) -> None:
        """Called before any other event. Nothing is placed for settle_seconds, so that requests of the
        former leader are counted first. epoch: number of the term."""
        self.requests.takeover.take_over(settle_seconds, inherits=snapshot is not None)
        if snapshot is not None:
            self._scheduler.restore(snapshot)
        self.adapters.take_over(adapters or AdapterSnapshot(), epoch)
        for declared in self._declared:
            self.adapters.declare(*declared)
        self.models.take_over(models or ModelBookSnapshot(), epoch)
        self.models.declare(dict(self._declared_models))

    # -- sessions

    def open_session(
        self, apiserver_id: ApiserverId, held: Iterable[HeldRequest]
    ) -> tuple[RouterSession, list[Effect]]:
        """An apiserver opens a session. Its older session, if one is still open, is closed first."""
        older = self._entries.session_of(apiserver_id)
        effects = self.close_session(older) if older else []
        session, takeover = self._entries.add_session(apiserver_id), self.requests.takeover
        again = takeover.has_seen(apiserver_id)
        self._adopt(session, held, charged=takeover.already_charged(apiserver_id), again=again)
        return session, effects

    def close_session(self, session: RouterSession) -> list[Effect]:
        """The stream has ended. Everything that the session held is given back. Idempotent."""
        self._entries.drop_session(session)
        self.models.follow_apiservers()
        ended = [self.requests.end(request_id, Exit.GIVEN_BACK) for request_id in list(session.entries)]
        return [*ended, *self.requests.dispatch()]

    def answers_models(self, session: RouterSession, models: AnsweringModels) -> list[Effect]:
        """An apiserver says for which models it takes requests."""
        session.models = models
        self.models.follow_apiservers()
        return []

    # -- workers

    def register(self, spec: WorkerSpec) -> list[Effect]:
        """Errors: InvalidRequest, as ClusterMembership.register."""
        self.membership.register(spec)
        self.adapters.lifecycle.follow_members()
        return self.requests.dispatch()

    def heartbeat(
        self,
        worker_id: WorkerId,
        epoch: int,
        load: EngineLoad,
        *,
        draining: bool = False,
        reports: AdapterReports | None = None,
    ) -> list[Effect]:
        """Parameters and errors: as ClusterMembership.heartbeat."""
        before = self.membership.adapters(worker_id)
        member = self.membership.heartbeat(worker_id, epoch, load, draining=draining, reports=reports)
        if reports is not None:
            self.speeds.adapter_loads.learn(before, member.adapters)
            self.requests.awaited.heard(member)
        self.adapters.lifecycle.follow_members()
        self.adapters.lifecycle.heard(member)
        return self.requests.dispatch()

    def drain(self, worker_id: WorkerId, order: DrainOrder) -> tuple[ClusterMember, int]:
        """Returns the worker, and the number of other workers of its role that take requests. Errors:
        NotFound, as ClusterMembership.order."""
        member = self.membership.order(worker_id, order)
        peers = self.membership.available(member.spec.model, member.spec.role)
        return member, sum(peer is not member for peer in peers)

    def deregister(self, worker_id: WorkerId, epoch: int) -> list[Effect]:
        self.membership.deregister(worker_id, epoch)
        self.adapters.lifecycle.follow_members()
        return self.requests.dispatch()

    def worker_failed(
        self, worker_id: WorkerId, epoch: int, reason: str, *, stalled: bool = False
    ) -> list[Effect]:
        """stalled: the worker answers, and gave a request no output in time."""
        if stalled:
            self.speeds.stalled(worker_id)
        self.membership.suspect(worker_id, epoch, reason)
        return self.requests.dispatch()

    # -- time

    def tick(self) -> list[Effect]:
        """Expires silent workers and requests whose deadline has passed, and lets adapters and models go."""
        self.membership.expire()
        self.models.tick()
        self.adapters.lifecycle.follow_members()
        self.adapters.lifecycle.tick()
        self.prefixes.hash_check.look()
        return [*self.requests.follow_workers(), *self.requests.expire(), *self.requests.dispatch()]

    # -- settings

    def reconfigure(self, settings: RouterSettings) -> list[Effect]:
        """Takes new settings from now on. What runs keeps its place, and what waits keeps its deadline."""
        self.membership.set_expiry(settings.expiry_seconds)
        self._planner.rules = self._placement_rules.rules(settings.placement)
        self.prefixes.prefetches = settings.prefetch_on_prefix
        self.speeds.limits = settings.slow
        self.models.drain_seconds = settings.drain_timeout_seconds
        for declared in settings.adapters:
            self.adapters.declare(*declared)
        evictions = self._scheduler.set_policy(settings.policy)
        hopeless = [self.requests.evict(eviction) for eviction in evictions]
        return [*hopeless, *self.requests.dispatch()]

    def check_integrity(self) -> None:
        """Raises AssertionError when anything is lost, or counted other than once."""
        self._queue.check_integrity()
        self._scheduler.keys.check_integrity(self._entries.ids)
        self._entries.check_integrity()
        running = [entry.hold for entry in self._entries if entry.hold]
        assert len(running) == self._queue.running_requests, self
        assert len(self._entries) - len(running) == self._queue.waiting_requests, self
        placed = [(slots, hold.work.adapter) for hold in running for slots in hold.slots()]
        held = [slots for slots, _ in placed]
        for slots in {*held, *(member.slots for member in self.membership)}:
            assert slots.placed_requests == held.count(slots), self
            adapters = [adapter for one, adapter in placed if one is slots and adapter]
            slots.adapters.check_integrity(adapters)

    # -- parts

    def _adopt(
        self, session: RouterSession, held: Iterable[HeldRequest], *, charged: bool, again: bool
    ) -> None:
        for request in held:
            if request.request_id not in self._entries:
                prefill = self._slots(request.prefill) if request.prefill else None
                now = self._clock.now()
                work = Work(placed_at=now, choices=request.choices, adapter=request.adapter)
                hold = PlacementHold(prefill, self._slots(request.decode), work)
                self.requests.adopt(session, request, hold, charged=charged, again=again)

    def _slots(self, worker: Incarnation) -> WorkerSlots:
        return self.membership.slots(worker.worker_id, worker.epoch)
