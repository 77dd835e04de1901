"""Turns of tenants: fair shares, without those that cannot use a turn now.

A tenant that used up a budget of its own is suspended until one of its requests ends, or until the
time when its rate allows more: it costs nothing meanwhile. One whose requests have no place just now
is passed over until the round ends.
"""

import heapq

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.fairness import FairShare


class Turns:
    """begin_round -> (next -> dispatch | suspend | pass_over) ... -> end_round."""

    def __init__(self, fairness: FairShare) -> None:
        self.fairness = fairness
        self._suspended: dict[TenantId, float | None] = {}  # until when; None: until something ends
        self._ready: list[tuple[float, TenantId]] = []
        self._passed_over: set[TenantId] = set()

    def __contains__(self, tenant: TenantId) -> bool:
        """Does the tenant wait for a turn it can use?"""
        return tenant not in self._suspended and tenant not in self._passed_over

    def join(self, tenant: TenantId) -> None:
        self.fairness.join(tenant)

    def leave(self, tenant: TenantId) -> None:
        self._suspended.pop(tenant, None)
        self._passed_over.discard(tenant)
        self.fairness.leave(tenant)

    def begin_round(self, now: float) -> None:
        while (ready_at := self.next_ready()) is not None and ready_at <= now:
            self.released(self._ready[0][1])

    def next(self) -> TenantId | None:
        return self.fairness.next()

    def pass_over(self, tenant: TenantId) -> None:
        """Until the round ends."""
        self._passed_over.add(tenant)
        self.fairness.suspend(tenant)

    def suspend(self, tenant: TenantId, until: float | None) -> None:
        """Until this time, or until something of the tenant ends."""
        self._suspended[tenant] = until
        self.fairness.suspend(tenant)
        if until is not None:
            heapq.heappush(self._ready, (until, tenant))

    def released(self, tenant: TenantId) -> None:
        """Something of the tenant has ended: it may be able to use a turn again."""
        if tenant in self._suspended:
            del self._suspended[tenant]
            self.fairness.resume(tenant)

    def end_round(self) -> None:
        for tenant in self._passed_over:
            self.fairness.resume(tenant)
        self._passed_over.clear()

    def restart(self) -> None:
        """All may have a turn again: the limits have changed."""
        for tenant in list(self._suspended):
            self.released(tenant)

    def next_ready(self) -> float | None:
        """When time alone brings a suspended tenant back."""
        while self._ready and self._suspended.get(self._ready[0][1]) != self._ready[0][0]:
            heapq.heappop(self._ready)
        return self._ready[0][0] if self._ready else None

    def check_integrity(self, waiting: set[TenantId], running: set[RequestId]) -> None:
        self.fairness.check_integrity(waiting, running)
        assert self._suspended.keys() <= waiting, self._suspended
        assert not self._passed_over, "a round is under way"
