"""What one apiserver session holds. Pure: when the session ends, all of it is given back."""

from dataclasses import dataclass, field

from llmserve.core.ids import ApiserverId, BlockHash, RequestId, WorkerId
from llmserve.router.filters import PlacementRequest
from llmserve.router.plan import Candidate, Plan
from llmserve.router.prefix_index import HashedPrompt
from llmserve.router.worker import Seats


@dataclass(slots=True, eq=False)
class Work:
    """What a placed request makes its workers do. Times are on the router's clock; plan and placed_at None:
    placed by an earlier router. kv_tokens: of its prompt and expected answers. choices: that decode."""

    plan: Plan | None = None
    placed_at: float | None = None
    model: str = ""
    kv_tokens: int = 0
    first_token_at: float | None = None
    running_at_first_token: int = 0
    choices: int = 1

    @classmethod
    def of(
        cls, plan: Plan, placement: PlacementRequest, output_tokens: int, now: float, choices: int = 1
    ) -> "Work":
        """output_tokens: of all choices."""
        kv_tokens = placement.prompt_tokens + output_tokens
        return cls(plan, now, placement.model, kv_tokens, choices=choices)

    @property
    def computed_tokens(self) -> int:
        return self.plan.computed_tokens if self.plan else 0

    @property
    def predicted(self) -> Candidate | None:
        """What its placement was expected to take; None: nothing was, and nothing is learnt from it."""
        return self.plan.predicted if self.plan else None


class Holding:
    """The seats of a placed request, and its part of their work. Each choice has a decode seat; the prefill
    seat goes back at the first token, or at the end."""

    __slots__ = ("_prefill", "decode", "work")

    def __init__(self, prefill: Seats | None, decode: Seats, work: Work | None = None) -> None:
        self._prefill, self.decode, self.work = prefill, decode, work or Work()
        for seats in self.seats():
            seats.take()
        decode.kv_tokens += self.work.kv_tokens
        if self.work.predicted and self.work.placed_at is not None:
            parts = self.work.predicted.parts
            self.computing.backlog.add(self, parts.load + parts.compute, self.work.placed_at)

    def seats(self) -> list[Seats]:
        """Each as often as it is taken."""
        decode = [self.decode] * self.work.choices
        return [self._prefill, *decode] if self._prefill else decode

    @property
    def computing(self) -> Seats:
        """Those of the worker that computes the prompt, until the first token."""
        return self._prefill or self.decode

    def first_token(self, now: float) -> float:
        """Once. Returns for how long the worker was busy with the prompt; 0 where nothing was predicted."""
        work = self.work
        busy = self.computing.backlog.remove(self, now) if work.predicted else 0.0
        work.first_token_at, work.running_at_first_token = now, self.decode.placed_requests
        if self._prefill:
            self._prefill.give_back()
            self._prefill = None
        return busy

    def give_back(self, now: float) -> None:
        """Exactly once, when the request is over."""
        if self.work.first_token_at is None:
            self.first_token(now)
        self.decode.kv_tokens -= self.work.kv_tokens
        for _ in range(self.work.choices):
            self.decode.give_back()


@dataclass(eq=False, slots=True)
class Session:
    """One open stream. Two sessions are never equal: a returning apiserver gets a new one."""

    apiserver_id: ApiserverId
    tickets: dict[RequestId, "Ticket"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """By whom, what it was expected to have, and the first block of the prompt (none: it has no full one)."""

    worker_id: WorkerId
    epoch: int
    predicted_cached_tokens: int
    first_block: BlockHash | None


@dataclass(eq=False, slots=True)
class Ticket:
    """One request between Admit (or Hello) and its end. holding None: it waits in the queue. requests_ahead:
    that waited when it came. prompt: while it waits. prefilled: what its worker was expected to find, once it
    is placed."""

    session: Session
    placement: PlacementRequest
    holding: Holding | None = None
    requests_ahead: int = 0
    prompt: HashedPrompt = field(default_factory=HashedPrompt)
    matched_at: float = float("-inf")
    prefilled: Prefilled | None = None
