"""What apiserver sessions hold: their requests, and the worker slots of those that are placed. Pure.

What they held under a former leader is in Takeover.
"""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from llmserve.config.wanted_models import AnsweringModels
from llmserve.core.adapters import BASE_MODEL
from llmserve.core.clock import Clock
from llmserve.core.ids import AdapterDigest, ApiserverId, BlockHash, RequestId, WorkerId
from llmserve.router.placement.planner import Candidate, CostParts, PlacementRequest, Plan
from llmserve.router.prefix.index import NO_PROMPT, HashedPrompt
from llmserve.router.workers.backlog import PlacedPrompt
from llmserve.router.workers.worker import WorkerSlots


@dataclass(slots=True, eq=False)
class Work:
    """What a placed request makes its workers do. plan None: an earlier router placed it. Times are on the
    router's clock. kv_tokens: tokens of its prompt and its expected answers. choices: sequences that decode
    side by side. prompt: in the backlog of the worker that computes it; None: an earlier router placed the
    request, and its prompt is computed. compute_seconds: time in which its prompt was computed, known from
    the first token on."""

    plan: Plan | None = None
    placed_at: float = 0.0
    kv_tokens: int = 0
    first_token_at: float | None = None
    running_at_first_token: int = 0
    prompt: PlacedPrompt | None = None
    compute_seconds: float = 0.0
    choices: int = 1
    adapter: AdapterDigest = BASE_MODEL

    @property
    def predicted(self) -> Candidate | None:
        """The seconds that were predicted for the placement; None: no prediction was made."""
        return self.plan.predicted if self.plan else None


class PlacementHold:
    """The worker slots of a placed request, and its part of their work. Each choice holds one slot of the
    decode worker; the slot of the prefill worker is given back at the first token, or at the end."""

    __slots__ = ("_prefill", "decode", "work")

    def __init__(self, prefill: WorkerSlots | None, decode: WorkerSlots, work: Work | None = None) -> None:
        self._prefill, self.decode, self.work = prefill, decode, work or Work()
        adapter = self.work.adapter
        for slots in self.slots():
            slots.take(adapter, self._adapter_ready_at(slots) if adapter else 0.0)
        decode.kv_tokens += self.work.kv_tokens
        if prefill or self.work.plan:
            self.work.prompt = self.computing.backlog.add(self._prompt_seconds(), self.work.placed_at)

    def slots(self) -> list[WorkerSlots]:
        """The slots, each as often as this request holds it."""
        decode = [self.decode] * self.work.choices
        return [self._prefill, *decode] if self._prefill else decode

    def _adapter_ready_at(self, slots: WorkerSlots) -> float:
        """When the worker will have loaded the adapter, if it has not done so yet."""
        if self.work.predicted is None:
            return self.work.placed_at
        parts = self.work.predicted.parts
        return self.work.placed_at + (parts.adapter if slots is self.computing else parts.decode_adapter)

    def _prompt_seconds(self) -> float:
        """The predicted seconds of its prompt on the worker that computes it; 0 without a prediction."""
        parts = self.work.predicted.parts if self.work.predicted else CostParts()
        return parts.load + parts.compute

    @property
    def computing(self) -> WorkerSlots:
        """The slots of the worker that computes the prompt, until the first token."""
        return self._prefill or self.decode

    def first_token(self, now: float) -> float:
        """Called once. Returns the seconds in which the worker computed this prompt, as far as this router
        has seen it."""
        work = self.work
        busy = self.computing.backlog.remove(work.prompt, now) if work.prompt else 0.0
        work.first_token_at, work.running_at_first_token = now, self.decode.placed_requests
        if self._prefill:
            self._prefill.give_back(work.adapter)
            self._prefill = None
        return busy

    def give_back(self, now: float) -> None:
        """Called exactly once, when the request is over."""
        if self.work.first_token_at is None:
            self.first_token(now)
        self.decode.kv_tokens -= self.work.kv_tokens
        for _ in range(self.work.choices):
            self.decode.give_back(self.work.adapter)


@dataclass(eq=False, slots=True)
class RouterSession:
    """One open stream. Two sessions are never equal: a returning apiserver gets a new one. models: what the
    apiserver has said of them; None: nothing yet."""

    apiserver_id: ApiserverId
    entries: dict[RequestId, "RequestEntry"] = field(default_factory=dict)
    models: AnsweringModels | None = None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The worker that computes the prompt, and what it was expected to have cached. first_block None: the
    prompt has no full block."""

    worker_id: WorkerId
    epoch: int
    predicted_cached_tokens: int
    first_block: BlockHash | None


@dataclass(eq=False, slots=True)
class RequestEntry:
    """One request between Admit (or Hello) and its end. hold None: it waits in the queue. requests_ahead:
    requests that waited when it arrived. prompt: kept while it waits. prefilled: set when it is placed."""

    session: RouterSession
    placement: PlacementRequest
    hold: PlacementHold | None = None
    requests_ahead: int = 0
    prompt: HashedPrompt = NO_PROMPT
    matched_at: float = float("-inf")
    prefilled: Prefilled | None = None


class RequestTable:
    """All requests that wait or run. Each is also in its session, and in no other."""

    def __init__(self) -> None:
        self._sessions: dict[ApiserverId, RouterSession] = {}
        self._entries: dict[RequestId, RequestEntry] = {}
        self._users: Counter[AdapterDigest] = Counter()

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._entries

    def __getitem__(self, request_id: RequestId) -> RequestEntry:
        return self._entries[request_id]

    def __iter__(self) -> Iterator[RequestEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def ids(self) -> Set[RequestId]:
        return self._entries.keys()

    @property
    def apiservers(self) -> int:
        return len(self._sessions)

    def get(self, request_id: RequestId) -> RequestEntry | None:
        return self._entries.get(request_id)

    def users(self, adapter: AdapterDigest) -> int:
        """How many requests have this version of an adapter."""
        return self._users[adapter]

    def of_model(self, model: str) -> int:
        """How many requests are for this model. It looks at all of them."""
        return sum(entry.placement.model == model for entry in self)

    # -- sessions

    def sessions(self) -> Iterator[RouterSession]:
        return iter(self._sessions.values())

    def session_of(self, apiserver_id: ApiserverId) -> RouterSession | None:
        return self._sessions.get(apiserver_id)

    def add_session(self, apiserver_id: ApiserverId) -> RouterSession:
        """Replaces an older session of the apiserver. The caller closes that one's entries."""
        session = self._sessions[apiserver_id] = RouterSession(apiserver_id)
        return session

    def drop_session(self, session: RouterSession) -> None:
        """Idempotent. The caller closes its entries."""
        if self._sessions.get(session.apiserver_id) is session:
            del self._sessions[session.apiserver_id]

    # -- entries

    def open(self, request_id: RequestId, entry: RequestEntry) -> None:
        self._entries[request_id] = entry.session.entries[request_id] = entry
        self._users[entry.placement.adapter] += 1

    def close(self, request_id: RequestId) -> RequestEntry:
        entry = self._entries.pop(request_id)
        del entry.session.entries[request_id]
        adapter = entry.placement.adapter
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]
        return entry

    def check_integrity(self) -> None:
        """Raises AssertionError when an entry is in none of the sessions, or in two, or an adapter's requests
        are miscounted."""
        in_sessions = [request_id for session in self._sessions.values() for request_id in session.entries]
        assert sorted(in_sessions) == sorted(self._entries), self._entries
        assert self._users == Counter(entry.placement.adapter for entry in self), self._users


class Takeover:
    """What the former leader's term means for this one; nothing before take_over, or without a former
    leader."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._settled_at = float("-inf")
        self._inherits = False
        self._seen: set[ApiserverId] = set()

    def take_over(self, settle_seconds: float, *, inherits: bool) -> None:
        """Nothing is placed for settle_seconds, so that requests of the former leader are counted first.
        inherits: its snapshot was found."""
        self._settled_at = self._clock.now() + settle_seconds
        self._inherits = inherits

    @property
    def settling(self) -> bool:
        return self._clock.now() < self._settled_at

    def settled_at(self) -> float | None:
        """None: it has settled."""
        return self._settled_at if self.settling else None

    def has_seen(self, apiserver_id: ApiserverId) -> bool:
        """Whether this apiserver has had a session in this term: what it holds was counted in that."""
        return apiserver_id in self._seen

    def already_charged(self, apiserver_id: ApiserverId) -> bool:
        """Whether the snapshot has charged the requests that this apiserver holds as its session opens.
        Called once for each session: only an apiserver's first session can hold requests of the former
        leader."""
        first = apiserver_id not in self._seen
        self._seen.add(apiserver_id)
        return self._inherits and first
