"""Workers, and a controller with a virtual clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import ApiserverId, RequestId, TenantId, WorkerId
from llmserve.core.request import EngineLoad, Outcome, WorkerRole
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, Effect, HeldRequest
from llmserve.router.placement.planner import Disaggregate, PlacementRequest
from llmserve.router.sessions import RouterSession
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.worker import KvShape, WorkerSpec
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits

SHAPE = KvShape("rev", "bfloat16", "LBHNC", 16, 1, 1, 4096)


def _spec(name: str, *, epoch: int = 1, slots: int = 2, model: str = "m", **shape: Any) -> WorkerSpec:
    """The role is the first word of the name."""
    return WorkerSpec(
        worker_id=WorkerId(name),
        role=WorkerRole(name.partition("-")[0]),
        address=f"host:{epoch}",
        epoch=epoch,
        model=model,
        kv_shape=replace(SHAPE, **shape),
        max_model_len_tokens=2048,
        total_blocks=100,
        max_concurrency=slots,
        transports=("tcp",),
    )


@dataclass
class Cluster:
    """Drives a controller as the service does, and checks its books after every event."""

    clock: VirtualClock
    controller: Controller

    def register(self, *names: str, epoch: int = 1, slots: int = 2) -> list[Effect]:
        effects: list[Effect] = []
        for name in names:
            effects += self.controller.register(_spec(name, epoch=epoch, slots=slots))
        return self._checked(effects)

    def heartbeat(self, name: str, epoch: int = 1) -> list[Effect]:
        return self._checked(self.controller.heartbeat(WorkerId(name), epoch, EngineLoad()))

    def fail(self, name: str, epoch: int = 1) -> list[Effect]:
        return self._checked(self.controller.worker_failed(WorkerId(name), epoch, "broken"))

    def open(self, name: str = "api", held: tuple[HeldRequest, ...] = ()) -> RouterSession:
        session, effects = self.controller.open_session(ApiserverId(name), held)
        self._checked(effects)
        return session

    def close(self, session: RouterSession) -> list[Effect]:
        return self._checked(self.controller.close_session(session))

    def admit(
        self,
        session: RouterSession,
        name: str,
        *,
        timeout: float = 0.0,
        model: str = "m",
        without: str = "",
        tenant: str = "t",
        choices: int = 1,
        limits: KeyLimits = NO_LIMITS,
        again: bool = False,
    ) -> list[Effect]:
        placement = PlacementRequest(model, 10, frozenset(map(WorkerId, without.split())))
        request = Admit(
            RequestId(name),
            TenantId(tenant),
            placement,
            timeout_seconds=timeout,
            choices=choices,
            limits=limits,
            again=again,
        )
        return self._checked(self.controller.requests.admit(session, request))

    def first_token(self, session: RouterSession, name: str) -> list[Effect]:
        return self._checked(self.controller.requests.first_token(session, RequestId(name)))

    def done(self, session: RouterSession, name: str, outcome: Outcome = Outcome.COMPLETED) -> list[Effect]:
        return self._checked(self.controller.requests.done(session, RequestId(name), outcome, 5))

    def after(self, seconds: float) -> list[Effect]:
        self.clock.advance(seconds)
        return self._checked(self.controller.tick())

    def placed_on(self, name: str) -> int:
        members = [m for m in self.controller.membership if m.spec.worker_id == name]
        return members[0].slots.placed_requests

    def _checked(self, effects: list[Effect]) -> list[Effect]:
        self.controller.check_integrity()
        return effects


@pytest.fixture
def make_spec() -> Callable[..., WorkerSpec]:
    return _spec


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


@pytest.fixture
def make_cluster(clock: VirtualClock) -> Callable[..., Cluster]:
    def make(*workers: str, slots: int = 2, **settings: object) -> Cluster:
        settings = {"disaggregate": Disaggregate.ALWAYS} | settings
        router_settings = replace(RouterSettings(), **settings)  # type: ignore[arg-type]
        cluster = Cluster(clock, Controller(router_settings, clock, random.Random(7)))
        cluster.register(*workers, slots=slots)
        return cluster

    return make
