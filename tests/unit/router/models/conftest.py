"""A book with a runner that carries out its orders when the test says so, and apiservers that answer."""

import json
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from llmserve.config.wanted_models import AnsweringModels, ModelOrder, ModelReport, ModelState
from llmserve.core.clock import VirtualClock
from llmserve.router.models.book import ModelBook
from llmserve.router.models.registration import ModelRegistration
from llmserve.router.models.snapshot import ModelBookSnapshot

DRAIN_SECONDS = 60.0


def entry(name: str, source: str = "") -> str:
    return json.dumps({"source": source or f"hub/{name}", "name": name})


class ModelWorld:
    """reports: what the runner says of each model, by name. users: requests by model. apiservers: by name."""

    def __init__(self, clock: VirtualClock, *, manages: bool = True) -> None:
        self.clock, self.manages = clock, manages
        self.reports: dict[str, ModelReport] = {}
        self.users: Counter[str] = Counter()
        self.apiservers: dict[str, AnsweringModels | None] = {"api-0": AnsweringModels()}
        self.terms = 0
        self.begin_term({"a": entry("a")})

    def begin_term(self, declared: Mapping[str, str], saved: str = "") -> None:
        self.terms += 1000
        self.book = ModelBook(
            self.clock,
            lambda name: self.users[name],
            lambda: self.apiservers.values(),
            drain_seconds=DRAIN_SECONDS,
            manages=self.manages,
        )
        snapshot = ModelBookSnapshot.from_json(saved) if saved else ModelBookSnapshot()
        self.book.take_over(snapshot, self.terms)
        self.book.declare(declared)

    # -- the runner

    def orders(self) -> dict[str, ModelOrder]:
        return {order.name: order for order in self.book.orders()}

    def say(self, name: str, state: ModelState, **more: str) -> None:
        """The runner reports a model that it was ordered to have."""
        self.reports[name] = ModelReport(self.orders()[name].number, state, **more)
        self.hear()

    def hear(self) -> None:
        self.book.heard(list(self.reports.values()))

    def carry_out(self) -> None:
        """The runner lets go of what it is not to have."""
        numbers = {order.number for order in self.book.orders()}
        self.reports = {name: one for name, one in self.reports.items() if one.number in numbers}
        self.hear()

    def answer(self, *names: str, apiserver: str = "api-0", **failed: str) -> None:
        self.apiservers[apiserver] = AnsweringModels(frozenset(names), failed)
        self.book.follow_apiservers()

    # -- short ways

    def become_ready(self, *names: str) -> None:
        self.answer(*names)
        for name in names:
            self.say(name, ModelState.STARTING, directory=f"/models/{name}")
            self.say(name, ModelState.READY, directory=f"/models/{name}")
            assert self.state(name) is ModelState.READY, self.book

    def load(self, name: str, swap: str = "") -> ModelRegistration:
        return self.book.load(name, entry(name), swap)

    def state(self, name: str) -> ModelState | None:
        found = self.book.named(name)
        return found.state if found else None

    def served(self) -> list[str]:
        return [one.name for one in self.book.served()]

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.book.tick()


@pytest.fixture
def world(clock: VirtualClock) -> ModelWorld:
    made = ModelWorld(clock)
    made.become_ready("a")
    return made


@pytest.fixture
def make_world(clock: VirtualClock) -> Callable[..., ModelWorld]:
    return lambda **how: ModelWorld(clock, **how)
