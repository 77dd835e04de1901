"""What one apiserver session holds. Pure: when the session ends, all of it is given back.

Which request is held by which session. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmserve.core.ids import ApiserverId, BlockHash, RequestId, WorkerId
from llmserve.router.placement.planner import Candidate, PlacementRequest, Plan
from llmserve.router.prefix.index import HashedPrompt
from llmserve.router.workers.worker import WorkerSlots


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


class PlacementHold:
    """The seats of a placed request, and its part of their work. Each choice has a decode seat; the prefill
    seat goes back at the first token, or at the end."""

    __slots__ = ("_prefill", "decode", "work")

    def __init__(self, prefill: WorkerSlots | None, decode: WorkerSlots, work: Work | None = None) -> None:
        self._prefill, self.decode, self.work = prefill, decode, work or Work()
        for slots in self.slots():
            slots.take()
        decode.kv_tokens += self.work.kv_tokens
        if self.work.predicted and self.work.placed_at is not None:
            parts = self.work.predicted.parts
            self.computing.backlog.add(self, parts.load + parts.compute, self.work.placed_at)

    def slots(self) -> list[WorkerSlots]:
        """Each as often as it is taken."""
        decode = [self.decode] * self.work.choices
        return [self._prefill, *decode] if self._prefill else decode

    @property
    def computing(self) -> WorkerSlots:
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
class ApiserverSession:
    """One open stream. Two sessions are never equal: a returning apiserver gets a new one."""

    apiserver_id: ApiserverId
    entries: dict[RequestId, "RequestEntry"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """By whom, what it was expected to have, and the first block of the prompt (none: it has no full one)."""

    worker_id: WorkerId
    epoch: int
    predicted_cached_tokens: int
    first_block: BlockHash | None


@dataclass(eq=False, slots=True)
class RequestEntry:
    """One request between Admit (or Hello) and its end. holding None: it waits in the queue. requests_ahead:
    that waited when it came. prompt: while it waits. prefilled: what its worker was expected to find, once it
    is placed."""

    session: ApiserverSession
    placement: PlacementRequest
    hold: PlacementHold | None = None
    requests_ahead: int = 0
    prompt: HashedPrompt = field(default_factory=HashedPrompt)
    matched_at: float = float("-inf")
    prefilled: Prefilled | None = None


class RequestTable:
    """One for each request that waits or runs; it is in its session as well, and in no other."""

    def __init__(self) -> None:
        self._sessions: dict[ApiserverId, ApiserverSession] = {}
        self._entries: dict[RequestId, RequestEntry] = {}

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._entries

    def __getitem__(self, request_id: RequestId) -> RequestEntry:
        return self._entries[request_id]

    def __iter__(self) -> Iterator[RequestEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def apiservers(self) -> int:
        return len(self._sessions)

    def get(self, request_id: RequestId) -> RequestEntry | None:
        return self._entries.get(request_id)

    # -- sessions

    def session_of(self, apiserver_id: ApiserverId) -> ApiserverSession | None:
        return self._sessions.get(apiserver_id)

    def add_session(self, apiserver_id: ApiserverId) -> ApiserverSession:
        """In place of an older one, whose tickets are to be closed."""
        session = self._sessions[apiserver_id] = ApiserverSession(apiserver_id)
        return session

    def drop_session(self, session: ApiserverSession) -> None:
        """Idempotent. Its tickets are to be closed by the caller."""
        if self._sessions.get(session.apiserver_id) is session:
            del self._sessions[session.apiserver_id]

    # -- tickets

    def open(self, request_id: RequestId, entry: RequestEntry) -> None:
        self._entries[request_id] = entry.session.entries[request_id] = entry

    def close(self, request_id: RequestId) -> RequestEntry:
        entry = self._entries.pop(request_id)
        del entry.session.entries[request_id]
        return entry

    def check_integrity(self) -> None:
        """Raises AssertionError when a ticket is in none of the sessions, or in two."""
        in_sessions = [request_id for session in self._sessions.values() for request_id in session.entries]
        assert sorted(in_sessions) == sorted(self._entries), self._entries
