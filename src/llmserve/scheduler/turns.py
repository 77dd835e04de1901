"""Who may use its turn: fair turns, without the tenants that cannot use one now."""

import heapq
from bisect import bisect_right
from math import inf

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.fairness import FairShare

# Times closer together than this count as one, so that few are remembered.
_GRAIN_SECONDS = 0.05


class VirtualTimes:
    """What virtual time was at each moment of the last seconds."""

    def __init__(self) -> None:
        self._since, self._times = [-inf], [0.0]

    def note(self, now: float, virtual_time: float, seconds: float) -> None:
        """Remembers the virtual time of now, for so many seconds."""
        if virtual_time == self._times[-1] or now < self._since[-1] + _GRAIN_SECONDS:
            return
        self._since.append(now)
        self._times.append(virtual_time)
        outdated = bisect_right(self._since, now - seconds) - 1
        if 2 * outdated > len(self._since):
            del self._since[:outdated], self._times[:outdated]

    def at(self, when: float) -> float:
        """The virtual time of that moment; the oldest one that is known, if it is not remembered any more."""
        return self._times[max(0, bisect_right(self._since, when) - 1)]


class Turns:
    """A tenant that has used up a budget of its own is suspended until one of its requests ends, or until its
    rate allows more; it costs nothing meanwhile, and it does not get the missed turns later.

    A tenant whose requests have no place now is passed over until the round ends. Later it gets the turns
    that it has missed in the last `owed_seconds`, because others have used what was due to it.

    begin_round -> (next -> dispatch | suspend | pass_over) ... -> end_round."""

    def __init__(self, fairness: FairShare) -> None:
        self.fairness = fairness
        self._past, self._now, self._owed_since = VirtualTimes(), 0.0, 0.0
        self._suspended: dict[TenantId, float | None] = {}  # until when; None: until something ends
        self._ready: list[tuple[float, TenantId]] = []
        self._passed_over: dict[TenantId, None] = {}  # in the order of their turns

    def __contains__(self, tenant: TenantId) -> bool:
        """Whether the tenant could use a turn now."""
        return tenant not in self._suspended and tenant not in self._passed_over

    def join(self, tenant: TenantId) -> None:
        self.fairness.join(tenant)

    def leave(self, tenant: TenantId) -> None:
        self._suspended.pop(tenant, None)
        self._passed_over.pop(tenant, None)
        self.fairness.leave(tenant)

    def begin_round(self, now: float, owed_seconds: float) -> None:
        self._past.note(now, self.fairness.virtual_time, owed_seconds)
        self._now, self._owed_since = now, self._past.at(now - owed_seconds)
        while (ready_at := self.next_ready()) is not None and ready_at <= now:
            self.released(self._ready[0][1])

    def next(self) -> TenantId | None:
        return self.fairness.next()

    def pass_over(self, tenant: TenantId) -> None:
        """The tenant has no turn until the round ends."""
        self._passed_over[tenant] = None
        self.fairness.suspend(tenant)

    def is_behind(self, tenant: TenantId, seconds: float) -> bool:
        """Whether the tenant's turn came more than so many seconds before this round, and others have had
        later ones since."""
        return self.fairness.is_behind(tenant, self._past.at(self._now - seconds))

    def suspend(self, tenant: TenantId, until: float | None) -> None:
        """The tenant has no turn until this time, or until one of its requests ends."""
        self._suspended[tenant] = until
        self.fairness.suspend(tenant)
        if until is not None:
            heapq.heappush(self._ready, (until, tenant))

    def released(self, tenant: TenantId) -> None:
        """A request of the tenant has ended: the tenant may have a turn again."""
        if tenant in self._suspended:
            del self._suspended[tenant]
            self.fairness.resume(tenant)

    def end_round(self) -> None:
        for tenant in self._passed_over:
            self.fairness.resume(tenant, self._owed_since)
        self._passed_over.clear()

    def restart(self) -> None:
        """The limits have changed: all tenants may have a turn again."""
        for tenant in list(self._suspended):
            self.released(tenant)

    def next_ready(self) -> float | None:
        """Time at which a suspended tenant returns without another event."""
        while self._ready and self._suspended.get(self._ready[0][1]) != self._ready[0][0]:
            heapq.heappop(self._ready)
        return self._ready[0][0] if self._ready else None

    def check_integrity(self, waiting: set[TenantId], running: set[RequestId]) -> None:
        self.fairness.check_integrity(waiting, running)
        assert self._suspended.keys() <= waiting, self._suspended
        assert not self._passed_over, "a round is under way"
