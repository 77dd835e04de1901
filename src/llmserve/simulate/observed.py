"""What is counted while a simulation runs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmserve.core.ids import RequestId, TenantId, WorkerId
from llmserve.router.plan import Plan
from llmserve.simulate.request import Record
from llmserve.simulate.timeline import Timeline

# To which gaps between tokens are told apart.
_GAP_DIGITS = 6


@dataclass(slots=True)
class Observed:
    """gaps: how often a token came so many seconds after the one before. waiting: requests in the queue.
    kv_used: blocks, summed over heartbeats. requests: placed on each worker. on_one_worker: those of
    which one worker computes prompt and answer."""

    timeline: Timeline = field(default_factory=Timeline)
    gaps: Counter[float] = field(default_factory=Counter)
    waiting: Counter[TenantId] = field(default_factory=Counter)
    kv_used: Counter[WorkerId] = field(default_factory=Counter)
    heartbeats: int = 0
    requests: Counter[WorkerId] = field(default_factory=Counter)
    on_one_worker: int = 0
    _last_at: dict[RequestId, float] = field(default_factory=dict)

    def heartbeat(self, worker_id: WorkerId, used_blocks: int) -> None:
        self.kv_used[worker_id] += used_blocks
        self.heartbeats += 1

    def placed(self, plan: Plan) -> None:
        self.on_one_worker += plan.prefill is None
        for member in filter(None, (plan.prefill, plan.decode)):
            self.requests[member.spec.worker_id] += 1

    def second_over(self) -> None:
        self.timeline.second_over(self._who_waits())

    def first_token(self, request_id: RequestId, record: Record, now: float, cached_tokens: int) -> None:
        """The prompt is computed, but for what was cached."""
        record.first_at, record.cached_tokens, record.output_tokens = now, cached_tokens, 1
        request = record.request
        self.timeline.computed(request.tenant, request.prompt_tokens - cached_tokens + 1)
        self._last_at[request_id] = now

    def tokens(self, request_id: RequestId, record: Record, now: float, tokens: int, seconds: float) -> None:
        """So many after the first, the last one now and the others `seconds` apart before it."""
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
