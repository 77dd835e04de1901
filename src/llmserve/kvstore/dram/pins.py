"""Leases of readers: which uses of slots each one pins, and until when. Pure."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.clock import Clock
from llmserve.core.deadlines import Deadlines
from llmserve.core.ids import LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import PoolUser

REMEMBERED_ENDS = 4096


@dataclass(frozen=True, slots=True)
class PinLease:
    lease_id: LeaseId
    user: PoolUser
    generations: tuple[int, ...]


class PinBook:
    """Ended leases are handed back to the caller, who unpins."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[LeaseId, PinLease] = {}
        self._deadlines: Deadlines[str] = Deadlines()
        self._ended: OrderedDict[LeaseId, None] = OrderedDict()
        self._granted = 0

    def __len__(self) -> int:
        return len(self._open)

    def open_leases(self) -> list[PinLease]:
        return list(self._open.values())

    def grant(self, user: PoolUser, generations: Sequence[int], seconds: float) -> LeaseId:
        self._granted += 1
        lease_id = LeaseId(f"pin-{self._granted:x}")
        self._open[lease_id] = PinLease(lease_id, user, tuple(generations))
        self._deadlines.put(lease_id, self._clock.now() + seconds)
        return lease_id

    def check(self, lease_id: LeaseId) -> LeaseAnswer:
        if lease_id in self._open:
            return LeaseAnswer.VALID
        return LeaseAnswer.ENDED if lease_id in self._ended else LeaseAnswer.UNKNOWN

    def renew(self, lease_id: LeaseId, seconds: float) -> LeaseAnswer:
        answer = self.check(lease_id)
        if answer is LeaseAnswer.VALID:
            self._deadlines.put(lease_id, self._clock.now() + seconds)
        return answer

    def end(self, lease_id: LeaseId) -> PinLease:
        """Of one that is open."""
        self._deadlines.drop(lease_id)
        self._ended[lease_id] = None
        if len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        return self._open.pop(lease_id)

    def end_late(self) -> list[PinLease]:
        return [self.end(LeaseId(name)) for name in self._deadlines.take_due(self._clock.now())]

    def end_of(self, user: PoolUser) -> list[PinLease]:
        """All of a user that is gone."""
        return [self.end(lease.lease_id) for lease in self.open_leases() if lease.user == user]

    def next_expiry(self) -> float | None:
        return self._deadlines.next()
