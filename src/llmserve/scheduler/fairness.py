"""Whose turn it is: start-time fair queueing between tenants, by measured cost.

Each tenant has a tag: the virtual time at which its next request starts. The least tag is next, and a
dispatched request moves its tenant's tag by cost / weight. Virtual time is the greatest tag that was
served, so it never goes back. A tenant that returns from idling starts there: it has saved nothing up. When
the queue empties, what a tenant used while nobody else waited is forgiven. The charge at dispatch is an
estimate; the actual cost later moves the tag by the difference.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from llmserve.core.ids import RequestId, TenantId, owner_of
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.snapshot import FairnessSnapshot

# Entries that are out of date stay in the heap until they are most of it.
_SLACK = 64


@dataclass(frozen=True, slots=True)
class TenantShares:
    """weights: weights of tenants; others have 1. kv_token_price: tokens of work that holding the KV of one
    token is worth: max_tokens_in_flight / (tokens whose KV fits the HBM budget); 0 when either has no
    limit. So the cost is the dominant share of the two budgets, in tokens. background: part of a tenant's
    weight that its background flow has, unless `weights` names the flow itself."""

    weights: Mapping[TenantId, float] = field(default_factory=dict)
    kv_token_price: float = 0.0
    background: float = 1.0

    def weight(self, tenant: TenantId) -> float:
        if tenant in self.weights:
            return self.weights[tenant]
        owner = owner_of(tenant)
        return self.weights.get(owner, 1.0) * (1.0 if owner == tenant else self.background)

    def cost(self, request: QueuedRequest, output_tokens: int) -> float:
        """Cost in tokens, at least 1."""
        held = self.kv_token_price * request.context_tokens(output_tokens)
        return max(held, float(request.work_tokens(output_tokens)))


class FairShare:
    """Knows the tenants that wait. join .. leave enclose the time in which a request of the tenant waits;
    suspend .. resume, within it, the time in which the tenant cannot use a turn."""

    def __init__(self, shares: TenantShares | None = None) -> None:
        self.shares = shares or TenantShares()
        self.virtual_time = 0.0
        self._tags: dict[TenantId, float] = {}
        self._highest = 0.0
        self._waiting: set[TenantId] = set()
        self._entries: dict[TenantId, tuple[float, int, TenantId]] = {}  # of those whose turn may come
        self._heap: list[tuple[float, int, TenantId]] = []
        self._sequence = count()
        self._charged: dict[RequestId, float] = {}

    def __repr__(self) -> str:
        return f"<FairShare at={self.virtual_time:g} waiting={len(self._waiting)}>"

    def join(self, tenant: TenantId) -> None:
        """A request of the tenant waits, where none did."""
        assert tenant not in self._waiting, tenant
        self._waiting.add(tenant)
        self.resume(tenant)

    def leave(self, tenant: TenantId) -> None:
        """No request of the tenant waits any more."""
        self._waiting.remove(tenant)
        self._entries.pop(tenant, None)
        if not self._waiting:
            self.virtual_time = max(self.virtual_time, self._highest)
            self._tags.clear()

    def suspend(self, tenant: TenantId) -> None:
        """The tenant cannot use a turn."""
        del self._entries[tenant]

    def resume(self, tenant: TenantId, owed_since: float | None = None) -> None:
        """A waiting tenant takes part again. owed_since: virtual time from which on it gets the turns that it
        has missed; None: it gets none of them."""
        assert tenant in self._waiting, tenant
        assert tenant not in self._entries, tenant
        earliest = self.virtual_time if owed_since is None else owed_since
        self._set_tag(tenant, max(earliest, self._tag(tenant)))
        self._push(tenant)

    def is_behind(self, tenant: TenantId, virtual_time: float) -> bool:
        """Whether the next turn of a waiting tenant should have come before this virtual time."""
        return tenant in self._waiting and self._tag(tenant) < virtual_time

    def next(self) -> TenantId | None:
        """The tenant whose turn it is; None: no waiting tenant could use it. O(log n)."""
        while self._heap:
            tenant = self._heap[0][2]
            if self._entries.get(tenant) is self._heap[0]:
                return tenant
            heapq.heappop(self._heap)
        return None

    def dispatched(self, request: QueuedRequest) -> None:
        """The request has its place: its tenant is charged the expected cost."""
        tenant = request.tenant
        if request.charged:
            self._charged[request.request_id] = self.shares.cost(request, request.expected_output_tokens)
            return
        if tenant in self._waiting:
            self.virtual_time = max(self.virtual_time, self._tag(tenant))
        else:  # it never waited
            self._set_tag(tenant, max(self.virtual_time, self._tag(tenant)))
        self._charged[request.request_id] = 0.0
        self._charge(request, request.expected_output_tokens)

    def corrected(self, request: QueuedRequest, output_tokens: int) -> None:
        """A running request has generated this many tokens: they are charged now if they are more than
        expected."""
        if output_tokens > request.expected_output_tokens:
            self._charge(request, output_tokens)

    def ended(self, request: QueuedRequest, output_tokens: int) -> None:
        """The request is over: its tenant is charged the actual cost."""
        self._charge(request, output_tokens)
        del self._charged[request.request_id]

    def snapshot(self) -> FairnessSnapshot:
        return FairnessSnapshot(self.virtual_time, self._highest, dict(self._tags))

    def restore(self, snapshot: FairnessSnapshot) -> None:
        """Continues from another router's state. Called before anything waits."""
        assert not self._waiting, self
        self.virtual_time, self._highest = snapshot.virtual_time, snapshot.highest
        self._tags = dict(snapshot.tags)

    def check_integrity(self, waiting: set[TenantId], running: set[RequestId]) -> None:
        assert self._waiting == waiting, self
        assert self._charged.keys() == running, self
        assert self._entries.keys() <= waiting, self
        assert all(self._entries[tenant][0] == self._tags[tenant] for tenant in self._entries), self

    # -- parts

    def _tag(self, tenant: TenantId) -> float:
        return self._tags.get(tenant, self.virtual_time)

    def _set_tag(self, tenant: TenantId, tag: float) -> None:
        self._tags[tenant] = tag
        self._highest = max(self._highest, tag)

    def _charge(self, request: QueuedRequest, output_tokens: int) -> None:
        """Replaces what the request was charged before."""
        tenant, cost = request.tenant, self.shares.cost(request, output_tokens)
        difference = cost - self._charged[request.request_id]
        self._charged[request.request_id] = cost
        self._set_tag(tenant, self._tag(tenant) + difference / self.shares.weight(tenant))
        if tenant in self._entries:
            self._push(tenant)

    def _push(self, tenant: TenantId) -> None:
        """Equal tags are served in the order in which they were set."""
        entry = self._entries[tenant] = (self._tags[tenant], next(self._sequence), tenant)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)
