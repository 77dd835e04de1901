"""Requests of many adapters over few slots: who goes first, and nobody starves."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.adapters import AdapterReport, AdapterReports, AdapterState, AdapterTier, LoraShape
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, ApiserverId, RequestId, TenantId
from llmserve.core.request import EngineLoad, Outcome
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.snapshot import AdapterSnapshot
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, Effect, RequestPlaced
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.worker import WorkerSpec
from llmserve.scheduler.ordering import AdapterTurns, ShortestFirst
from llmserve.scheduler.scheduler import Policy


class Field:
    """Aggregated workers with so many adapter slots and seats. The first letter of a request is its adapter
    (x: none)."""

    def __init__(
        self,
        make_spec: Callable[..., WorkerSpec],
        *,
        workers: int = 1,
        slots: int = 1,
        seats: int = 8,
        max_queued_requests: int = 1024,
        **turns: Any,
    ) -> None:
        self.clock = VirtualClock(1000.0)
        policy = Policy(
            max_queued_requests=max_queued_requests,
            queue_timeout_seconds=1e6,
            ordering=ShortestFirst(aging_seconds=0.0),
            adapters=AdapterTurns(**turns),
        )
        settings = RouterSettings(policy, engine_queue_seconds=1e9, expiry_seconds=1e9)
        self.controller = Controller(settings, self.clock, random.Random(1))
        letters = [AdapterDigest(letter * 64) for letter in "abcdefghijklmnop"]
        registrations = [
            Registration(number, "m", AdapterWish(digest, "dir:/a"), AdapterState.READY, digest)
            for number, digest in enumerate(letters, 1)
        ]
        book = AdapterSnapshot(len(registrations), registrations)
        self.controller.take_over(None, 0.0, adapters=book, epoch=1)
        disk = AdapterTier.DISK
        reports = AdapterReports(
            tuple(AdapterReport(one.number, one.digest, tier=disk) for one in registrations)
        )
        for number in range(workers):
            spec = make_spec(f"aggregated-{number}", slots=seats)
            self.controller.register(replace(spec, lora=LoraShape(slots)))
            self.controller.heartbeat(spec.worker_id, 1, EngineLoad(), reports=reports)
        self.session, _ = self.controller.open_session(ApiserverId("api"), ())
        self.placed: list[str] = []
        self.placed_at: dict[str, float] = {}

    def admit(self, name: str, tenant: str = "t") -> list[str]:
        adapter = AdapterDigest("" if name[0] == "x" else name[0] * 64)
        request = PlacementRequest("m", 10, adapter=adapter)
        return self._took(
            self.controller.requests.admit(self.session, Admit(RequestId(name), TenantId(tenant), request))
        )

    def done(self, name: str) -> list[str]:
        return self._took(self.controller.requests.done(self.session, RequestId(name), Outcome.COMPLETED, 1))

    def _took(self, effects: list[Effect]) -> list[str]:
        self.controller.check_integrity()
        placed = [str(one.request_id) for one in effects if isinstance(one, RequestPlaced)]
        self.placed += placed
        self.placed_at |= dict.fromkeys(placed, self.clock.now())
        return placed


MakeField = Callable[..., Field]


@pytest.fixture
def make_field(make_spec: Callable[..., WorkerSpec]) -> MakeField:
    return lambda **settings: Field(make_spec, **settings)


def test_one_without_a_slot_lets_others_pass(make_field: MakeField) -> None:
    field = make_field(packing_seconds=0.0, aging_seconds=5.0)
    assert field.admit("a1") == ["a1"]
    assert field.admit("b1") == []
    assert field.admit("a2") == ["a2"]
    assert field.admit("x1") == ["x1"]
    assert field.done("a1") == []
    assert field.done("a2") == ["b1"]


def test_after_its_time_the_next_slot_is_its_own(make_field: MakeField) -> None:
    """The adapter that runs gets no new requests from then on, until the other one has its slot."""
    field = make_field(packing_seconds=0.0, aging_seconds=5.0)
    field.admit("a1")
    field.admit("b1")
    field.clock.advance(4.9)
    assert field.admit("a2") == ["a2"]
    field.clock.advance(0.1)
    assert field.admit("x1") == ["x1"]
    assert field.admit("a3") == []
    assert field.admit("c1") == []
    assert field.done("a1") == []
    assert field.done("a2") == ["b1"]
    assert field.done("b1") == ["a3"]


@pytest.mark.parametrize("leaves", ["withdrawn", "expired"])
def test_a_slot_is_kept_for_nobody_who_has_gone(make_field: MakeField, leaves: str) -> None:
    field = make_field(packing_seconds=0.0, aging_seconds=5.0)
    field.admit("a1")
    field.admit("b1")
    field.clock.advance(5.0)
    assert field.admit("a2") == []
    if leaves == "withdrawn":
        assert field.done("b1") == ["a2"]
    else:
        field.clock.advance(2e6)
        field.controller.tick()
        assert field.admit("a3") == ["a3"]


def test_a_slot_is_kept_for_nobody_who_is_rejected(make_field: MakeField) -> None:
    """The queue is full, so it is asked for a place at once, and it has no time to wait for one."""
    field = make_field(packing_seconds=0.0, aging_seconds=0.0, max_queued_requests=0)
    field.admit("a1")
    assert field.admit("b1") == []
    assert field.admit("a2") == ["a2"]


def test_adapters_that_run_and_those_that_most_ask_for_go_first(make_field: MakeField) -> None:
    """One of two seats becomes free again and again; a1 has the other one all the time."""
    field = make_field(slots=2, seats=2, packing_seconds=10.0, aging_seconds=50.0)
    for name in ("a1", "x1", "c1", "b1", "a2", "b2", "x2", "a3", "b3"):
        field.admit(name)
    for _ in range(7):
        field.done(field.placed[-1])
    assert field.placed == ["a1", "x1", "a2", "x2", "a3", "b1", "b2", "c1", "b3"]


@pytest.mark.parametrize(("waited", "first"), [(9.9, "x1"), (10.0, "c1")])
def test_nobody_lets_others_pass_for_longer_than_the_bound(
    make_field: MakeField, waited: float, first: str
) -> None:
    field = make_field(slots=2, seats=1, packing_seconds=10.0, aging_seconds=50.0)
    field.admit("a1")
    field.admit("c1")
    field.clock.advance(waited)
    field.admit("x1")
    assert field.done("a1") == [first]


def test_packing_takes_no_turn_from_another_tenant(make_field: MakeField) -> None:
    """One tenant asks for an adapter that runs, the other for as many different ones: both get the same."""
    field = make_field(slots=3, seats=2, packing_seconds=1e9, aging_seconds=1e9)
    rng = random.Random(4)
    for number in range(200):
        field.admit(f"a-{number}", "packed")
        field.admit(f"{rng.choice('bcdefghijk')}-{number}", "mixed")
    running = list(field.placed)
    while len(field.placed) < 200:
        running += field.done(running.pop(0))
    shares = Counter("packed" if name[0] == "a" else "mixed" for name in field.placed[:200])
    assert 95 <= shares["packed"] <= 105


@pytest.mark.parametrize("seed", range(6))
def test_nobody_starves(make_field: MakeField, seed: int) -> None:
    """Two workers of two slots. Four adapters are asked for so often that their requests never end all at
    once, and another twelve now and then. A rare one waits for its time, then for the requests of one
    version, each 2 s long, and for the rare ones before it."""
    field, rng = make_field(workers=2, slots=2, packing_seconds=2.0, aging_seconds=5.0), random.Random(seed)
    ends: defaultdict[int, list[str]] = defaultdict(list)
    admitted: dict[str, float] = {}
    for step in range(1200):
        for name in ends.pop(step, []):
            for placed in field.done(name):
                ends[step + 10 + rng.randint(0, 10)].append(placed)
        adapter = rng.choice("abcd") if rng.random() < 0.97 else rng.choice("efghijklmnop")
        name = f"{adapter}-{step}"
        admitted[name] = field.clock.now()
        for placed in field.admit(name):
            ends[step + 10 + rng.randint(0, 10)].append(placed)
        field.clock.advance(0.1)
    now = field.clock.now()
    waits = {name: field.placed_at.get(name, now) - at for name, at in admitted.items()}
    rare = [wait for name, wait in waits.items() if name[0] > "d"]
    assert len(rare) > 20
    assert max(rare) <= 20.0
    assert max(waits.values()) <= 30.0
