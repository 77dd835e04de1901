"""What is counted while a simulation runs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmserve.core.ids import RequestId, TenantId, WorkerId
from llmserve.router.placement.planner import Plan
from llmserve.traces import TracedRequest


@dataclass(slots=True, eq=False)
class SimRecord:
    """What became of one request. Times are seconds from the start; None: it did not get that far. refusal:
    name of the error; empty: the request was served. gap: mean time between its tokens; 0 with fewer than
    two."""

    request: TracedRequest
    placed_at: float | None = None
    first_at: float | None = None
    ended_at: float | None = None
    output_tokens: int = 0
    cached_tokens: int = 0
    refusal: str = field(default="")

    @property
    def served(self) -> bool:
        return self.ended_at is not None and not self.refusal

    @property
    def queue_seconds(self) -> float:
        return (self.placed_at or 0.0) - self.request.arrived_at

    @property
    def first_token_seconds(self) -> float:
        return (self.first_at or 0.0) - self.request.arrived_at

    @property
    def total_seconds(self) -> float:
        return (self.ended_at or 0.0) - self.request.arrived_at

    @property
    def gap_seconds(self) -> float:
        gaps = self.output_tokens - 1
        return ((self.ended_at or 0.0) - (self.first_at or 0.0)) / gaps if gaps > 0 else 0.0


Tokens = Counter[TenantId]


@dataclass(slots=True)
class Timeline:
    """tokens[i]: tokens computed in second i, by tenant. waiting[i]: tenants with a request in the queue at
    its end."""

    tokens: list[Tokens] = field(default_factory=lambda: [Counter()])
    waiting: list[frozenset[TenantId]] = field(default_factory=list)

    def computed(self, tenant: TenantId, tokens: int) -> None:
        self.tokens[-1][tenant] += tokens

    def second_over(self, waiting: Iterable[TenantId]) -> None:
        self.waiting.append(frozenset(waiting))
        self.tokens.append(Counter())

    def contended(self, tenants: Iterable[TenantId]) -> list[int]:
        """Seconds at whose beginning and end requests of all these tenants waited."""
        wanted, ends = frozenset(tenants), self.waiting
        return [i for i in range(1, len(ends)) if wanted <= ends[i - 1] and wanted <= ends[i]]

    def sums(self, seconds: Iterable[int]) -> Tokens:
        total: Tokens = Counter()
        for second in seconds:
            total.update(self.tokens[second])
        return total


def per_weight(tokens: Mapping[TenantId, int], weights: Mapping[TenantId, float]) -> dict[TenantId, float]:
    return {tenant: count / weights.get(tenant, 1.0) for tenant, count in tokens.items()}


# Digits of seconds by which gaps between tokens are counted.
_GAP_DIGITS = 6


@dataclass(slots=True)
class Observed:
    """gaps: counts by the time between two tokens. waiting: requests in the queue. kv_used: blocks, summed
    over heartbeats. requests: requests placed on each worker. on_one_worker: requests whose prompt and
    answer one worker computes. pushed: requests whose KV prefill writes while it computes."""

    timeline: Timeline = field(default_factory=Timeline)
    gaps: Counter[float] = field(default_factory=Counter)
    waiting: Counter[TenantId] = field(default_factory=Counter)
    kv_used: Counter[WorkerId] = field(default_factory=Counter)
    heartbeats: int = 0
    requests: Counter[WorkerId] = field(default_factory=Counter)
    on_one_worker: int = 0
    pushed: int = 0
    _last_at: dict[RequestId, float] = field(default_factory=dict)

    def heartbeat(self, worker_id: WorkerId, used_blocks: int) -> None:
        self.kv_used[worker_id] += used_blocks
        self.heartbeats += 1

    def placed(self, plan: Plan) -> None:
        self.on_one_worker += plan.prefill is None
        self.pushed += plan.pushed
        for member in filter(None, (plan.prefill, plan.decode)):
            self.requests[member.spec.worker_id] += 1

    def second_over(self) -> None:
        self.timeline.second_over(self._who_waits())

    def first_token(self, request_id: RequestId, record: SimRecord, now: float, cached_tokens: int) -> None:
        """The prompt is computed, except for cached_tokens."""
        record.first_at, record.cached_tokens, record.output_tokens = now, cached_tokens, 1
        request = record.request
        self.timeline.computed(request.tenant, request.prompt_tokens - cached_tokens + 1)
        self._last_at[request_id] = now

    def tokens(
        self, request_id: RequestId, record: SimRecord, now: float, tokens: int, seconds: float
    ) -> None:
        """So many tokens after the first: the last one now, the others `seconds` apart before it."""
        record.output_tokens += tokens
        self.timeline.computed(record.request.tenant, tokens)
        self._gap(now - (tokens - 1) * seconds - self._last_at[request_id], 1)
        if tokens > 1:
            self._gap(seconds, tokens - 1)
        self._last_at[request_id] = now

    def over(self, request_id: RequestId) -> None:
        self._last_at.pop(request_id, None)

    def _gap(self, seconds: float, count: int) -> None:
        self.gaps[round(seconds, _GAP_DIGITS)] += count

    def _who_waits(self) -> Iterable[TenantId]:
        return (tenant for tenant, count in self.waiting.items() if count)
