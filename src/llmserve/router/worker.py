"""A worker as the router knows it."""

from dataclasses import dataclass, field, fields
from enum import StrEnum

from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.core.request import EngineLoad

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
    SUSPECT = "suspect"  # a request failed on it; its next heartbeat clears it
    LOST = "lost"  # silent for too long; kept for the status, and used again when it returns


class Seats:
    """How many requests are placed on one incarnation of a worker. Placements hold on to it, so
    that the count survives whatever happens to the membership meanwhile."""

    __slots__ = ("__weakref__", "placed_requests")

    def __init__(self) -> None:
        self.placed_requests = 0

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
    interruptions: int = 0

    @property
    def registered(self) -> bool:
        return self.state is not WorkerState.LOST
