"""The leases that one worker incarnation has told of. Pure.

The worker's own table (leases.py) decides; this is the copy that shows, cluster-wide, whether any
lease was left behind.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmserve.core.clock import Clock
from llmserve.core.ids import LeaseId
from llmserve.core.lease import LeaseChange, LeaseState

# The report of an expiry comes a little after it. Only a lease silent for longer is an orphan.
REPORT_SLACK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Open:
    blocks: int
    expires_at: float


class LeaseLedger:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[LeaseId, _Open] = {}

    @property
    def open_leases(self) -> int:
        return len(self._open)

    @property
    def leased_blocks(self) -> int:
        return sum(lease.blocks for lease in self._open.values())

    def apply(self, changes: Iterable[LeaseChange]) -> list[LeaseState]:
        """How the leases that ended did. A renewal is GRANTED again."""
        ended: list[LeaseState] = []
        for change in changes:
            if change.state is LeaseState.GRANTED:
                expires_at = self._clock.now() + change.remaining_seconds
                self._open[change.lease_id] = _Open(change.blocks, expires_at)
            elif self._open.pop(change.lease_id, None):
                ended.append(change.state)
        return ended

    def replace(self, changes: Iterable[LeaseChange]) -> int:
        """A snapshot: these are all the open ones. Returns how many were open and no longer are."""
        before = set(self._open)
        self._open.clear()
        self.apply(changes)
        return len(before - self._open.keys())

    def overdue_blocks(self) -> int:
        """Blocks of leases that should have ended, and of which no end was reported."""
        latest = self._clock.now() - REPORT_SLACK_SECONDS
        return sum(lease.blocks for lease in self._open.values() if lease.expires_at <= latest)

    def last_expiry(self) -> float:
        """When the last lease ends by itself; -inf when none is open."""
        return max((lease.expires_at for lease in self._open.values()), default=float("-inf"))
