"""A worker as the router knows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.core.request import EngineLoad
from llmserve.router.backlog import Backlog
from llmserve.router.links import Link, links_of
from llmserve.router.pace import Pace

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


class Seats:
    """What is placed on one incarnation of a worker: requests, the KV tokens of their prompts and expected
    answers, and prompts that it is to compute; and how fast it has been (pace None: nothing measured
    yet). Placements hold on to it, so that it survives whatever happens to the membership meanwhile."""

    __slots__ = ("__weakref__", "backlog", "kv_tokens", "pace", "placed_requests")

    def __init__(self) -> None:
        self.placed_requests = 0
        self.kv_tokens = 0
        self.backlog = Backlog()
        self.pace: Pace | None = None

    def take(self) -> None:
        self.placed_requests += 1

    def give_back(self) -> None:
        assert self.placed_requests > 0
        self.placed_requests -= 1


@dataclass(slots=True, eq=False)
class Member:
    """One incarnation of a worker. heard_at is on the router's clock. interruptions: how often it, or one
    before it of its name, stopped being available without having left in order."""

    spec: WorkerSpec
    seats: Seats
    heard_at: float
    state: WorkerState = WorkerState.AVAILABLE
    reason: str = ""  # why it is not available
    load: EngineLoad = field(default_factory=EngineLoad)
    draining: bool = False  # as it says itself
    order: DrainOrder | None = None  # until its heartbeats agree with it
    interruptions: int = 0
    _links: Mapping[str, Link] = field(default_factory=dict, repr=False)
    _links_of: EngineLoad | None = field(default=None, repr=False)

    def link_from(self, prefill: WorkerId) -> Link | None:
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
