"""What `llmserve status --json` and `/admin/v1/status` show. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmserve.core.request import PairStatus
from llmserve.core.stats import SpeculationReport


@dataclass(frozen=True, slots=True)
class SpeedView:
    """How long a worker took in the last minute. stage: "first token" or "later tokens". seconds: median, for
    each 1,000 prompt tokens, or for each later token. peers_seconds: that of the other workers of its model
    and role; None: it or they ran too few requests."""

    stage: str
    seconds: float
    peers_seconds: float | None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the router and the kvmanager know of a worker. available: requests may be placed on it.
    used_blocks: blocks that requests reference. stored_blocks: blocks of prefixes that may be used again.
    speeds: one for each stage that it ran in the last minute. speculation: None: its engine has proposed no
    tokens."""

    role: str
    available: bool
    draining: bool
    slow: bool
    reason: str
    running_requests: int
    waiting_requests: int
    used_blocks: int
    total_blocks: int
    stored_blocks: int
    leased_blocks: int
    transports: tuple[str, ...]
    last_transport: str
    transferred_bytes: int
    transfer_failures: int
    pairs: tuple[PairStatus, ...]
    speeds: tuple[SpeedView, ...] = ()
    speculation: SpeculationReport | None = None


@dataclass(frozen=True, slots=True)
class RoleView:
    """A process. health: "healthy", or why not. leads: true for the router that leads. worker: None for the
    other roles, and when the router does not know it."""

    name: str
    role: str
    stand: str
    health: str
    pid: int
    restarts: int
    address: str
    log: str
    worker: WorkerView | None
    leads: bool = False


@dataclass(frozen=True, slots=True)
class TierView:
    """A storage class of the KV store. load_bytes, store_bytes: what went out of it and into it since the
    start."""

    name: str
    kind: str
    blocks: int
    used_bytes: int
    capacity_bytes: int
    hit_blocks: int
    hit_tokens: int
    load_bytes: int
    store_bytes: int
    pinned_blocks: int


@dataclass(frozen=True, slots=True)
class HotPrefixView:
    """A beginning of prompts that was found cached often in the last minutes. block_hash: that of its last
    block, in hexadecimal. tenant: whose prompt it was last. uses: number of prompts."""

    block_hash: str
    tenant: str
    blocks: int
    tokens: int
    uses: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class IndexView:
    """The router's prefix index. followed, away: addresses of kvmanagers. proof: whether prompts are found
    again. hottest: used most often first. prompt_tokens, cached_tokens: totals of requests that have ended,
    since the router began to lead."""

    followed: tuple[str, ...]
    away: tuple[str, ...]
    blocks: int
    proof: str
    hottest: tuple[HotPrefixView, ...]
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TenantView:
    """queued_requests and running_requests: now; the others: totals since the router began to lead.
    wait_seconds: mean of the requests that got a place."""

    name: str
    weight: float
    queued_requests: int
    running_requests: int
    refused_requests: int
    wait_seconds: float
    served_tokens: int


@dataclass(frozen=True, slots=True)
class BudgetView:
    """used_ratio: 1 when there is no room; None: there is no limit, or one for each tenant. refused_requests:
    requests that came while there was no room."""

    name: str
    used_ratio: float | None
    refused_requests: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """adapters: as `llmserve adapters ls --json` shows them. problems: a sentence for each thing that is not
    as it should be."""

    cluster: str
    stand: str
    model: str
    base_urls: tuple[str, ...]
    pid: int
    uptime_seconds: float
    queued_requests: int
    running_requests: int
    directory_blocks: int
    open_leases: int
    leased_blocks: int
    orphan_blocks: int
    roles: tuple[RoleView, ...]
    tiers: tuple[TierView, ...]
    index: IndexView
    queue_limit_requests: int
    tenants: tuple[TenantView, ...]
    budgets: tuple[BudgetView, ...]
    adapters: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...]


def as_json(now: Snapshot) -> dict[str, Any]:
    return {"healthy": not now.problems, **asdict(now)}
