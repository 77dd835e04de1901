"""What was used up, and when: it explains what a request waited for. Pure."""

from bisect import bisect_right
from math import inf

from llmserve.core.ids import TenantId

# Older ones are forgotten: what a request waited for before is not reported.
_REMEMBERED = 256


class WaitTimeline:
    """What keeps requests from their turn, over time: one thing at a time; empty: nothing does."""

    def __init__(self) -> None:
        # Before what is remembered there is nothing.
        self._since, self._what = [-inf], [""]

    def set(self, what: str, now: float) -> None:
        """Holds from now on. Costs nothing while it stays the same."""
        if what == self._what[-1]:
            return
        self._since.append(now)
        self._what.append(what)
        if len(self._since) > 2 * _REMEMBERED:
            del self._since[1 : _REMEMBERED + 1], self._what[1 : _REMEMBERED + 1]

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds of this time in which each thing was used up."""
        seconds: dict[str, float] = {}
        for index in range(bisect_right(self._since, start) - 1, len(self._since)):
            until = self._since[index + 1] if index + 1 < len(self._since) else end
            share = min(until, end) - max(self._since[index], start)
            if self._what[index] and share > 0:
                seconds[self._what[index]] = seconds.get(self._what[index], 0.0) + share
        return seconds


class WaitReasons:
    """Timelines of all waiting requests, and of tenants that have used up their own."""

    def __init__(self) -> None:
        self._of_all = WaitTimeline()
        self._of_tenants: dict[TenantId, WaitTimeline] = {}

    def all_wait_for(self, what: str, now: float) -> None:
        """Holds from now on. Empty: requests wait for their turn."""
        self._of_all.set(what, now)

    def tenant_waits_for(self, tenant: TenantId, what: str, now: float) -> None:
        """Holds from now on. Empty: the tenant waits for its turn."""
        if what:
            self._of_tenants.setdefault(tenant, WaitTimeline()).set(what, now)
        elif tenant in self._of_tenants:
            self._of_tenants[tenant].set(what, now)

    def gone(self, tenant: TenantId) -> None:
        """No request of the tenant waits any more."""
        self._of_tenants.pop(tenant, None)

    def between(self, tenant: TenantId, start: float, end: float) -> dict[str, float]:
        """As WaitTimeline.between, for a request of the tenant."""
        seconds = self._of_all.between(start, end)
        if tenant in self._of_tenants:
            seconds |= self._of_tenants[tenant].between(start, end)
        return seconds
