"""Random events in random order: the books balance after each, and nobody is over-placed."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.adapters import LoraShape
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import NotFound
from llmserve.core.ids import AdapterDigest, ApiserverId, RequestId, TenantId, WorkerId
from llmserve.core.request import EngineLoad, Outcome, WorkerRole
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, Effect, RequestPlaced, RequestRefused
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.worker import KvShape, WorkerSpec
from llmserve.scheduler.scheduler import Policy

WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1", "aggregated-0")
EVENTS = ("admit", "admit", "first_token", "done", "close", "register", "heartbeat", "fail", "leave", "tick")
SLOTS = 2
ADAPTERS = ("", "a", "b")  # by the number of a request; an engine runs one of them beside the model
MOST_CHOICES = 3  # one more than an engine runs: refused


def _spec(name: str, epoch: int) -> WorkerSpec:
    role, shape = WorkerRole(name.partition("-")[0]), KvShape("r", "d", "l", 16, 1, 1, 1)
    lora = LoraShape(slots=1, max_rank=8)
    return WorkerSpec(WorkerId(name), role, "host:1", epoch, "m", shape, 10, 10, SLOTS, (), lora=lora)


class Play:
    """Applies one drawn event after another, and remembers who was answered."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        settings = RouterSettings(Policy(max_queued_requests=3, queue_timeout_seconds=8.0))
        self.controller: Controller = Controller(settings, self.clock, random.Random(1))
        self.sessions = [self._open(name) for name in ("one", "two")]
        self.epoch = 1
        self.admitted = 0
        self.answered = 0
        self.withdrawn = 0

    def event(self, kind: str, number: int) -> None:
        session = self.sessions[number % 2]
        request_id = RequestId(f"{session.apiserver_id}-{number}")
        worker = WorkerId(WORKERS[number % len(WORKERS)])
        match kind:
            case "admit":
                self._admit(number, request_id)
            case "first_token":
                self.took(self.controller.requests.first_token(session, request_id))
            case "done":
                self._forget(request_id)
                self.took(self.controller.requests.done(session, request_id, Outcome.COMPLETED, 1))
            case "close":
                for held in list(session.entries):
                    self._forget(held)
                self.took(self.controller.close_session(session))
                self.sessions[number % 2] = self._open(session.apiserver_id)
            case "register":
                self.epoch += number % 2
                self.took(self.controller.register(_spec(worker, self.epoch)))
            case "heartbeat":
                self._heartbeat(worker)
            case "fail":
                self.took(self.controller.worker_failed(worker, self.epoch, "broken"))
            case "leave":
                self.took(self.controller.deregister(worker, self.epoch))
            case "tick":
                self.clock.advance(number / 4)
                self.took(self.controller.tick())

    def _open(self, name: str):  # type: ignore[no-untyped-def]
        return self.controller.open_session(ApiserverId(name), ())[0]

    def _admit(self, number: int, request_id: RequestId) -> None:
        self._forget(request_id)
        self.admitted += 1
        placement = PlacementRequest("m", adapter=AdapterDigest(ADAPTERS[number // 3 % 3]))
        admit = Admit(request_id, TenantId(str(number % 3)), placement, choices=1 + number % 3)
        self.took(self.controller.requests.admit(self.sessions[number % 2], admit))

    def _forget(self, request_id: RequestId) -> None:
        """One that waits will not be answered any more."""
        waits = any(request_id in s.entries and s.entries[request_id].hold is None for s in self.sessions)
        self.withdrawn += waits

    def _heartbeat(self, worker: WorkerId) -> None:
        try:
            self.took(self.controller.heartbeat(worker, self.epoch, EngineLoad()))
        except NotFound:
            self.took(self.controller.register(_spec(worker, self.epoch)))

    def took(self, effects: list[Effect]) -> None:
        self.answered += sum(isinstance(effect, RequestPlaced | RequestRefused) for effect in effects)
        self.controller.check_integrity()
        for member in self.controller.membership:
            assert member.slots.placed_requests <= SLOTS + MOST_CHOICES - 1, "one seat was free"
            assert len(member.slots.adapters) <= 1


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=60))
@settings(max_examples=100, deadline=None, database=None)
def test_books_balance_after_every_event(events: list[tuple[str, int]]) -> None:
    play = Play()
    for kind, number in events:
        play.event(kind, number)
    # Every admission was answered once, is withdrawn, or waits.
    assert play.admitted == play.answered + play.withdrawn + play.controller.waiting_requests
