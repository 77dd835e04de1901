"""A controller with workers that carry out its orders: they fetch from sources that the test fills."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from llmserve.core.adapters import (
    AdapterOrder,
    AdapterReport,
    AdapterReports,
    AdapterState,
    AdapterTier,
    LoraShape,
    NamedAdapter,
    nearest,
)
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, ApiserverId, RequestId, TenantId, WorkerId
from llmserve.core.request import EngineLoad, Outcome, WorkerRole
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.snapshot import AdapterSnapshot
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, Effect, HeldRequest, Incarnation
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.sessions import RouterSession
from llmserve.router.settings import DeclaredAdapters, RouterSettings
from llmserve.router.workers.worker import ClusterMember, KvShape, WorkerSpec, WorkerState

SHAPE = KvShape("rev", "bfloat16", "LBHNC", 16, 1, 1, 4096)
LORA = LoraShape(slots=4, max_rank=16)
MODEL = "m"


def digest_of(content: str) -> AdapterDigest:
    return AdapterDigest(hashlib.sha256(content.encode()).hexdigest())


@dataclass
class Sources:
    """content: what is at a source now. away: the store does not answer. wrong: it is no adapter."""

    content: dict[str, str] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)


@dataclass
class Worker:
    """Carries out orders as workers/adapters does. fetches: whether it does so at all now. running: requests
    by version."""

    name: str
    epoch: int
    sources: Sources
    lora: LoraShape = LORA
    fetches: bool = True
    orders: dict[int, AdapterOrder] = field(default_factory=dict)
    reports: dict[int, AdapterReport] = field(default_factory=dict)
    running: Counter[AdapterDigest] = field(default_factory=Counter)
    version: int = 0
    sent: dict[int, AdapterReport] | None = None

    @property
    def spec(self) -> WorkerSpec:
        return WorkerSpec(
            worker_id=WorkerId(self.name),
            role=WorkerRole(self.name.partition("-")[0]),
            address=f"host:{self.epoch}",
            epoch=self.epoch,
            model=MODEL,
            kv_shape=SHAPE,
            max_model_len_tokens=2048,
            total_blocks=100,
            max_concurrency=16,
            transports=("tcp",),
            lora=self.lora,
        )

    def work(self) -> None:
        """Fetches what it is ordered to hold, and lets go of the rest unless requests hold it."""
        for number in list(self.reports):
            if number not in self.orders and not self.running[self.reports[number].digest]:
                del self.reports[number]
        for number, order in self.orders.items():
            known = self.reports.get(number, AdapterReport(number))
            if self.fetches and not known.error:
                known = self._fetched(order, known)
            self.reports[number] = replace(known, running=self.running[known.digest])

    def _fetched(self, order: AdapterOrder, known: AdapterReport) -> AdapterReport:
        if known.digest:
            return replace(known, tier=nearest(known.tier, order.tier))
        if order.tier is AdapterTier.SOURCE:
            return known
        content = self.sources.content.get(order.source)
        if order.source in self.sources.away:
            return replace(known, error="Unavailable", message="the store is away")
        if content is None or order.source in self.sources.wrong:
            return replace(known, error="InvalidRequest", message="no such adapter")
        if order.digest and digest_of(content) != order.digest:
            return replace(known, error="ModelNotFound", message="it has other contents")
        return replace(known, digest=digest_of(content), rank=8, size_bytes=100, tier=order.tier)

    def news(self) -> AdapterReports | None:
        """What has changed since it was asked last."""
        news = AdapterReports.since(self.sent, self.reports)
        self.sent = dict(self.reports)
        return news


class World:
    """One leading router after another, its workers, and one apiserver."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.sources = clock, Sources()
        self.workers: dict[str, Worker] = {}
        self.epochs = self.term = 0
        self.declared: tuple[AdapterWish, ...] = ()
        self.requests: dict[RequestId, AdapterDigest] = {}
        self.begin_term(None)

    @property
    def book(self) -> AdapterBook:
        return self.controller.adapters

    def begin_term(self, saved: str | None) -> None:
        """Another router leads. saved: what the last one has saved; None: nothing."""
        self.term += 1000
        settings = RouterSettings(adapters=(DeclaredAdapters(MODEL, self.declared),))
        self.controller = Controller(settings, self.clock, random.Random(1))
        snapshot = AdapterSnapshot.from_json(saved) if saved else None
        self.controller.take_over(None, 0.0, snapshot, self.term)
        for worker in self.workers.values():
            self._register(worker)
        self.session = self.open(held=[self._held(name) for name in self.requests])

    # -- workers

    def start(self, *names: str, lora: LoraShape = LORA, fetches: bool = True) -> None:
        for name in names:
            self.epochs += 1
            self.workers[name] = Worker(name, self.epochs, self.sources, lora, fetches)
            self._register(self.workers[name])

    def _register(self, worker: Worker) -> None:
        worker.version, worker.sent = 0, None
        self.controller.register(worker.spec)

    def stop(self, name: str) -> None:
        worker = self.workers.pop(name)
        self.controller.deregister(WorkerId(name), worker.epoch)

    def heartbeat(self, name: str) -> bool:
        """Returns whether the answer carried orders."""
        worker, orders = self.workers[name], self.book.lifecycle.orders
        worker.work()
        self.controller.heartbeat(WorkerId(name), worker.epoch, EngineLoad(), reports=worker.news())
        version = orders.version(WorkerId(name))
        if version == worker.version:
            return False
        worker.version = version
        worker.orders = {order.number: order for order in orders.orders(WorkerId(name))}
        return True

    def round(self, seconds: float = 1.0, rounds: int = 1) -> None:
        """Every worker sends a heartbeat."""
        for _ in range(rounds):
            self.clock.advance(seconds)
            self.controller.tick()
            for name in list(self.workers):
                self.heartbeat(name)

    def member(self, name: str) -> ClusterMember:
        return next(m for m in self.controller.membership if m.spec.worker_id == name)

    def state(self, name: str) -> WorkerState:
        return self.member(name).state

    def ordered(self, name: str) -> list[AdapterOrder]:
        return list(self.book.lifecycle.orders.orders(WorkerId(name)))

    # -- operators

    def load(self, name: str, content: str = "", **wish: object) -> Registration:
        """content: what is at the source `dir:/NAME` from now on; empty: what was there."""
        source = f"dir:/{name}"
        if content:
            self.sources.content[source] = content
        return self.book.load(MODEL, AdapterWish(name, source, **wish))  # type: ignore[arg-type]

    def loaded(self, name: str, content: str) -> Registration:
        """The same, and waits until it is ready."""
        registration = self.load(name, content)
        self.round(rounds=4)
        assert registration.state is AdapterState.READY, registration
        return registration

    def names(self) -> dict[str, AdapterDigest]:
        return {named.name: named.digest for named in self.book.names()}

    def named(self) -> list[NamedAdapter]:
        return list(self.book.names())

    # -- requests

    def open(self, held: list[HeldRequest] | None = None) -> RouterSession:
        return self.controller.open_session(ApiserverId("api"), held or ())[0]

    def _held(self, name: RequestId) -> HeldRequest:
        where = next(iter(self.workers.values()), Worker("decode-0", 1, self.sources))
        incarnation = Incarnation(WorkerId(where.name), where.epoch)
        return HeldRequest(name, TenantId("t"), None, incarnation, adapter=self.requests[name])

    def admit(self, name: str, digest: AdapterDigest) -> list[Effect]:
        request = Admit(RequestId(name), TenantId("t"), PlacementRequest(MODEL, 10, adapter=digest))
        effects = self.controller.requests.admit(self.session, request)
        if RequestId(name) in self.session.entries:
            self.requests[RequestId(name)] = digest
        return effects

    def done(self, name: str) -> list[Effect]:
        self.requests.pop(RequestId(name), None)
        return self.controller.requests.done(self.session, RequestId(name), Outcome.COMPLETED, 1)


@pytest.fixture
def world(clock: VirtualClock) -> World:
    return World(clock)


@pytest.fixture
def make_world(clock: VirtualClock) -> Callable[[], World]:
    return lambda: World(clock)
