"""How fast KV comes from one worker to another, as the one that fetches has measured it. Pure.

Prompts that one incarnation of a worker is to compute: placed there, and without a first token. Pure.

This is the queue with memory of recent work: an engine's own report is a heartbeat old, a placement is
known at once.


A worker as the router knows it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import NamedTuple

from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.core.request import EngineLoad, PairStatus
from llmserve.router.workers.latency import LatencyModel

REFUSED = "refused"  # PairStatus.breaker of a pair whose KV does not fit


class KvLink(NamedTuple):
    """One direction between two workers. refused: nothing can be fetched, the prompt is computed again."""

    fixed_seconds: float
    bytes_per_second: float
    refused: bool = False

    def seconds(self, size_bytes: float) -> float:
        return self.fixed_seconds + size_bytes / self.bytes_per_second


# Of a pair that has not been probed: a network that is neither slow nor fast.
UNKNOWN_LINK = KvLink(0.003, 2e9)


def links_of(pairs: Sequence[PairStatus]) -> Mapping[str, KvLink]:
    """By peer: over the transport that the next request uses. Peers without a measurement are left out."""
    links: dict[str, KvLink] = {}
    for pair in pairs:
        if pair.breaker == REFUSED:
            links[pair.peer] = UNKNOWN_LINK._replace(refused=True)
        elif pair.chosen and pair.bytes_per_second > 0:
            links[pair.peer] = _measured(pair)
    return links


def _measured(pair: PairStatus) -> KvLink:
    """The probe tells the speed; what requests took beyond that is asking, waiting and checking."""
    fixed = pair.small_seconds
    if pair.transfers:
        seconds = (pair.seconds - pair.bytes / pair.bytes_per_second) / pair.transfers
        fixed = max(fixed, seconds)
    return KvLink(fixed, pair.bytes_per_second)


class Backlog:
    """Times are on the router's clock. Prompts are computed in the order in which they came."""

    __slots__ = ("_began", "_pending", "_seconds")

    def __init__(self) -> None:
        self._pending: dict[Hashable, tuple[float, float]] = {}  # expected seconds, when it was added
        self._seconds = 0.0
        self._began = 0.0  # when the first of the pending could be begun

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, key: Hashable, seconds: float, now: float) -> None:
        """seconds: what it is expected to take, alone. A key is added once."""
        assert key not in self._pending, key
        if not self._pending:
            self._began = now
        self._pending[key] = (seconds, now)
        self._seconds += seconds

    def remove(self, key: Hashable, now: float) -> float:
        """It has its first token, or is given up. Returns for how long the worker was busy with it: since
        it was added, or since the one before it was done. Errors: KeyError."""
        seconds, added_at = self._pending.pop(key)
        busy = now - max(added_at, self._began)
        self._began = now
        # Rounding would add up: an empty backlog is empty.
        self._seconds = max(0.0, self._seconds - seconds) if self._pending else 0.0
        return busy

    def seconds(self, now: float) -> float:
        """Until one that is added now is begun. The first counts less the longer it runs, but one that is
        overdue takes nothing off the others."""
        if not self._pending:
            return 0.0
        first = next(iter(self._pending.values()))[0]
        return self._seconds - min(first, now - self._began)


_SIZES = ("block_size_tokens", "tensor_parallel")


@dataclass(frozen=True, slots=True)
class KvShape:
    """How a worker keeps its KV. Workers of different block sizes or tensor parallel sizes exchange KV when
    their layouts have the same name, which says all that must be equal (engines/connector/memory.py)."""

    model_revision: str
    kv_dtype: str
    layout: str
    block_size_tokens: int
    tensor_parallel: int
    pipeline_parallel: int
    block_bytes: int
    computation: str = ""

    @property
    def bytes_per_token(self) -> float:
        """Over all layers and ranks; 0 while the size of a block is not known."""
        size = self.block_size_tokens
        return self.block_bytes * self.tensor_parallel / size if size else 0.0

    def differences(self, other: "KvShape") -> list[str]:
        """What keeps the two from exchanging KV, in words; empty when nothing does."""
        resized = any(getattr(self, name) != getattr(other, name) for name in _SIZES)
        names = (f.name for f in fields(self) if not resized or f.name not in (*_SIZES, "block_bytes"))
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name} {mine!r} differs from {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker says of itself when it registers. epoch is larger after each of its starts."""

    worker_id: WorkerId
    role: WorkerRole
    address: str
    epoch: int
    model: str
    kv_shape: KvShape
    max_model_len_tokens: int
    total_blocks: int
    max_concurrency: int
    transports: tuple[str, ...]
    handover_endpoints: tuple[str, ...] = ()


class WorkerState(StrEnum):
    AVAILABLE = "available"
    SUSPECT = "suspect"  # a request failed on it, until its next heartbeat; or its engine does not answer
    DRAINING = "draining"  # it is to stop; what runs there goes on
    LOST = "lost"  # silent for too long; kept for the status, and used again when it returns


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """What an operator wants of a worker. drain False: it is to stay after all. timeout_seconds: for what
    runs there to end."""

    drain: bool
    timeout_seconds: float = 0.0


class WorkerSlots:
    """What is placed on one incarnation of a worker: requests, the KV tokens of their prompts and expected
    answers, and prompts that it is to compute; and how fast it has been (pace None: nothing measured
    yet). Placements hold on to it, so that it survives whatever happens to the membership meanwhile."""

    __slots__ = ("__weakref__", "backlog", "kv_tokens", "latency", "placed_requests")

    def __init__(self) -> None:
        self.placed_requests = 0
        self.kv_tokens = 0
        self.backlog = Backlog()
        self.latency: LatencyModel | None = None

    def take(self) -> None:
        self.placed_requests += 1

    def give_back(self) -> None:
        assert self.placed_requests > 0
        self.placed_requests -= 1


@dataclass(slots=True, eq=False)
class ClusterMember:
    """One incarnation of a worker. heard_at is on the router's clock. interruptions: how often it, or one
    before it of its name, stopped being available without having left in order."""

    spec: WorkerSpec
    slots: WorkerSlots
    heard_at: float
    state: WorkerState = WorkerState.AVAILABLE
    reason: str = ""  # why it is not available
    load: EngineLoad = field(default_factory=EngineLoad)
    draining: bool = False  # as it says itself
    order: DrainOrder | None = None  # until its heartbeats agree with it
    interruptions: int = 0
    _links: Mapping[str, KvLink] = field(default_factory=dict, repr=False)
    _links_of: EngineLoad | None = field(default=None, repr=False)

    def link_from(self, prefill: WorkerId) -> KvLink | None:
        """How this worker fetches KV from that one; None: it has not said."""
        if self._links_of is not self.load:  # read when it is asked for: most heartbeats never are
            self._links, self._links_of = links_of(self.load.pairs), self.load
        return self._links.get(prefill)

    @property
    def to_leave(self) -> bool:
        """The order that is on its way counts for more than what the worker says."""
        return self.order.drain if self.order else self.draining

    @property
    def registered(self) -> bool:
        return self.state is not WorkerState.LOST
