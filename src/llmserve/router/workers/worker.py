"""A worker as the router knows it: what it says of itself, what is placed on it, and its links to others.
Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import NamedTuple

from llmserve.core.adapters import (
    BASE_MODEL,
    NO_ADAPTERS,
    AdapterReport,
    AdapterReports,
    AdapterTier,
    LoraShape,
)
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.request import EngineLoad, PairStatus, WorkerRole
from llmserve.router.workers.adapter_slots import AdapterSlots
from llmserve.router.workers.backlog import Backlog
from llmserve.router.workers.latency import LatencyModel

REFUSED = "refused"  # PairStatus.breaker of a pair whose KV does not fit


class KvLink(NamedTuple):
    """How fast KV comes from one worker to another. refused: nothing can be fetched, so the prompt is
    computed again. transport: empty when it is not known."""

    fixed_seconds: float
    bytes_per_second: float
    refused: bool = False
    transport: str = ""

    def seconds(self, size_bytes: float) -> float:
        return self.fixed_seconds + size_bytes / self.bytes_per_second


# Of a pair that has not been probed: a network that is neither slow nor fast.
UNKNOWN_LINK = KvLink(0.003, 2e9)


def links_of(pairs: Sequence[PairStatus]) -> Mapping[str, KvLink]:
    """Links by peer, over the transport that the next request uses. Peers without a measurement are left
    out."""
    links: dict[str, KvLink] = {}
    for pair in pairs:
        if pair.breaker == REFUSED:
            links[pair.peer] = UNKNOWN_LINK._replace(refused=True)
        elif pair.chosen and pair.bytes_per_second > 0:
            links[pair.peer] = _measured(pair)
    return links


def _measured(pair: PairStatus) -> KvLink:
    """The probe measures the speed. The time that requests took beyond it is asking, waiting and checking."""
    fixed = pair.small_seconds
    if pair.transfers:
        seconds = (pair.seconds - pair.bytes / pair.bytes_per_second) / pair.transfers
        fixed = max(fixed, seconds)
    return KvLink(fixed, pair.bytes_per_second, transport=pair.transport)


_SIZES = ("block_size_tokens", "tensor_parallel")


@dataclass(frozen=True, slots=True)
class KvShape:
    """How a worker keeps its KV. Workers of different block sizes or tensor parallel sizes exchange KV when
    their layouts have the same name, which says all that must be equal (engines/connector/memory.py).
    draft_revision: names the contents of the draft model, whose KV lies in the same blocks; empty: there is
    none."""

    model_revision: str
    kv_dtype: str
    layout: str
    block_size_tokens: int
    tensor_parallel: int
    pipeline_parallel: int
    block_bytes: int
    computation: str = ""
    draft_revision: str = ""

    @property
    def bytes_per_token(self) -> float:
        """Bytes over all layers and ranks; 0 while the size of a block is unknown."""
        size = self.block_size_tokens
        return self.block_bytes * self.tensor_parallel / size if size else 0.0

    def differences(self, other: "KvShape") -> list[str]:
        """The differences that keep the two from exchanging KV, for people; empty: there are none."""
        resized = any(getattr(self, name) != getattr(other, name) for name in _SIZES)
        names = (f.name for f in fields(self) if not resized or f.name not in (*_SIZES, "block_bytes"))
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name} {mine!r} differs from {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker says of itself when it registers. Each of its starts has a larger epoch.
    min_decode_slots: those of max_concurrency that are kept for requests that decode."""

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
    lora: LoraShape = NO_ADAPTERS
    min_decode_slots: int = 0

    def differences(self, other: "WorkerSpec") -> list[str]:
        """What keeps the two from serving a request together, for people; empty: nothing does."""
        lora = [] if self.lora == other.lora else [f"lora {self.lora!r} differs from {other.lora!r}"]
        return self.kv_shape.differences(other.kv_shape) + lora


class WorkerState(StrEnum):
    AVAILABLE = "available"
    SUSPECT = "suspect"  # a request failed on it, until its next heartbeat; or its engine does not answer
    FETCHING = "fetching"  # it has not got all adapters yet that requests may use
    DRAINING = "draining"  # it is to stop; what runs there goes on
    LOST = "lost"  # silent for too long; kept for the status, and used again when it returns


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """An operator's wish. drain False: the worker stays after all. timeout_seconds: time for its requests
    to end."""

    drain: bool
    timeout_seconds: float = 0.0


class WorkerSlots:
    """What is placed on one incarnation of a worker: requests, their adapters, KV tokens of their prompts
    and expected answers, and prompts to compute. latency: its measured speed; None: nothing is measured yet.
    Placements refer to it, so it survives changes of the membership."""

    __slots__ = ("__weakref__", "adapters", "backlog", "kv_tokens", "latency", "placed_requests")

    def __init__(self) -> None:
        self.placed_requests = 0
        self.kv_tokens = 0
        self.adapters = AdapterSlots()
        self.backlog = Backlog()
        self.latency: LatencyModel | None = None

    def take(self, adapter: AdapterDigest = BASE_MODEL, ready_at: float = 0.0) -> None:
        """adapter, ready_at: as AdapterSlots.take."""
        self.placed_requests += 1
        if adapter:
            self.adapters.take(adapter, ready_at)

    def give_back(self, adapter: AdapterDigest = BASE_MODEL) -> None:
        assert self.placed_requests > 0
        self.placed_requests -= 1
        if adapter:
            self.adapters.give_back(adapter)


@dataclass(slots=True, eq=False)
class ClusterMember:
    """One incarnation of a worker. heard_at: time on the router's clock. interruptions: how often it, or an
    older incarnation, stopped being available without leaving in order. reports: what it said last of each
    adapter that it was ordered to hold, by the number of the order."""

    spec: WorkerSpec
    slots: WorkerSlots
    heard_at: float
    state: WorkerState = WorkerState.AVAILABLE
    reason: str = ""  # why it is not available
    load: EngineLoad = field(default_factory=EngineLoad)
    draining: bool = False  # as it says itself
    order: DrainOrder | None = None  # until its heartbeats agree with it
    interruptions: int = 0
    lacks: str = ""  # what it must get first, in words
    ruled_out: set[AdapterDigest] = field(default_factory=set)  # versions that it has failed to get
    reports: Mapping[int, AdapterReport] = field(default_factory=dict, repr=False)
    _adapters: Mapping[AdapterDigest, AdapterReport] | None = field(default=None, repr=False)
    _links: Mapping[str, KvLink] = field(default_factory=dict, repr=False)
    _links_of: EngineLoad | None = field(default=None, repr=False)

    def link_from(self, prefill: WorkerId) -> KvLink | None:
        """How this worker fetches KV from that one; None: it has not reported it."""
        if self._links_of is not self.load:  # read when it is asked for: most heartbeats never are
            self._links, self._links_of = links_of(self.load.pairs), self.load
        return self._links.get(prefill)

    def hear_reports(self, reports: AdapterReports) -> None:
        self.reports, self._adapters = reports.applied_to(self.reports), None

    @property
    def adapters(self) -> Mapping[AdapterDigest, AdapterReport]:
        """What it said of each version that it has fetched and can run. One that is absent has to come from
        its source. The same object until it reports again."""
        if self._adapters is None:
            known = (report for report in self.reports.values() if report.digest and not report.error)
            self._adapters = {report.digest: report for report in known}
        return self._adapters

    def has_loaded(self, adapter: AdapterDigest) -> bool:
        """Whether requests of the version are placed here, or it is in a device slot by the last report."""
        report = self.adapters.get(adapter)
        return adapter in self.slots.adapters or (report is not None and report.tier is AdapterTier.DEVICE)

    @property
    def has_prompt_place(self) -> bool:
        """Whether it may compute one more prompt that it decodes itself: prompts take none of the places of
        its batch that are kept for requests that decode."""
        return self.slots.backlog.prompts < self.spec.max_concurrency - self.spec.min_decode_slots

    @property
    def to_leave(self) -> bool:
        """An order that the worker has not confirmed counts for more than its own report."""
        return self.order.drain if self.order else self.draining

    @property
    def registered(self) -> bool:
        return self.state is not WorkerState.LOST
