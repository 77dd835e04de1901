"""The table of leases of one worker incarnation: decisions only, no I/O and no threads.

A lease pins blocks for a reader in another process. It ends by `release` or by its expiry,
whichever comes first; its blocks stay pinned ("orphan") until the owner of the memory takes the
ended request with `take_ended` and frees them. Readers validate after they read: only a release
that answers VALID proves that the blocks were pinned all the while.

Not thread-safe: the caller holds a lock when several threads use one table.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.lease import Lease, LeaseState
from llmserve.core.lease import LeaseChange as LeaseChange

REMEMBERED_ENDS = 4096
REMEMBERED_CHANGES = 4096


class LeaseAnswer(StrEnum):
    """What a message about a lease finds."""

    VALID = "valid"
    ENDED = "ended"  # released or expired before
    WRONG_EPOCH = "wrong_epoch"  # of another incarnation of this worker
    UNKNOWN = "unknown"  # never granted, not granted yet, or ended long ago


@dataclass(frozen=True, slots=True)
class LeaseChanges:
    """Changes up to `sequence`, in order; with snapshot=True every open lease instead."""

    sequence: int
    snapshot: bool
    changes: tuple[LeaseChange, ...]


@dataclass(slots=True)
class LeaseCounters:
    """Totals since the start of the incarnation."""

    granted: int = 0
    renewed: int = 0
    released: int = 0
    expired: int = 0
    refused: int = 0  # messages that found no valid lease


@dataclass(slots=True)
class LeaseTable:
    """epoch is that of this incarnation; lease_seconds the length of a grant and of a renewal."""

    epoch: int
    lease_seconds: float
    clock: Clock
    counters: LeaseCounters = field(default_factory=LeaseCounters)
    _open: dict[LeaseId, Lease] = field(default_factory=dict)
    _by_request: dict[RequestId, LeaseId] = field(default_factory=dict)
    _done: dict[LeaseId, set[int]] = field(default_factory=dict)  # readers that have released
    _untaken: dict[RequestId, Lease] = field(default_factory=dict)
    _ended: OrderedDict[LeaseId, LeaseState] = field(default_factory=OrderedDict)
    _changes: deque[tuple[int, LeaseChange]] = field(default_factory=deque)
    _sequence: int = 0

    # -- the owner of the blocks

    def grant(
        self, request_id: RequestId, block_ids: Sequence[int], lease_id: LeaseId | None = None
    ) -> Lease:
        """Pins blocks for a reader. Errors: InvalidRequest when the request holds a lease already
        (also one that ended and was not taken), when the id was used, or when there are no blocks."""
        lease_id = lease_id or LeaseId(f"{self.epoch:x}.{self.counters.granted:x}.{request_id}")
        self._check_grant(request_id, block_ids, lease_id)
        expires_at = self.clock.now() + self.lease_seconds
        lease = Lease(lease_id, request_id, self.epoch, tuple(block_ids), expires_at)
        self._open[lease_id] = lease
        self._by_request[request_id] = lease_id
        self.counters.granted += 1
        self._record(lease, LeaseState.GRANTED)
        return lease

    def take_ended(self) -> frozenset[RequestId]:
        """Requests whose lease has ended, each once: the caller frees their blocks now."""
        self.expire()
        taken = frozenset(self._untaken)
        self._untaken.clear()
        return taken

    def withdraw(self, request_id: RequestId) -> bool:
        """The owner itself ends the lease of a request. False: it holds none that is open."""
        lease_id = self._by_request.get(request_id)
        return lease_id is not None and self.release(lease_id, self.epoch) is LeaseAnswer.VALID

    # -- readers

    def check(self, lease_id: LeaseId, epoch: int) -> LeaseAnswer:
        """Whether the blocks of a lease may be read now. Changes nothing but expired leases."""
        self.expire()
        if epoch != self.epoch:
            return LeaseAnswer.WRONG_EPOCH
        if lease_id in self._open:
            return LeaseAnswer.VALID
        return LeaseAnswer.ENDED if lease_id in self._ended else LeaseAnswer.UNKNOWN

    def renew(self, lease_id: LeaseId, epoch: int) -> LeaseAnswer:
        """Lets a valid lease run for lease_seconds from now."""
        answer = self._admit(lease_id, epoch)
        if answer is LeaseAnswer.VALID:
            old = self._open[lease_id]
            expires_at = self.clock.now() + self.lease_seconds
            self._open[lease_id] = Lease(lease_id, old.request_id, old.epoch, old.block_ids, expires_at)
            self.counters.renewed += 1
        return answer

    def release(self, lease_id: LeaseId, epoch: int, reader: int = 0, readers: int = 1) -> LeaseAnswer:
        """Ends a lease, when all of its readers have released it. VALID: it was open until now, so what was
        read under it is true."""
        answer = self._admit(lease_id, epoch)
        if answer is LeaseAnswer.VALID:
            done = self._done.setdefault(lease_id, set())
            done.add(reader)
            if len(done) >= readers:
                self._end(lease_id, LeaseState.RELEASED)
        return answer

    def _admit(self, lease_id: LeaseId, epoch: int) -> LeaseAnswer:
        answer = self.check(lease_id, epoch)
        if answer is not LeaseAnswer.VALID:
            self.counters.refused += 1
        return answer

    # -- time

    def expire(self) -> tuple[LeaseId, ...]:
        """Ends the leases whose time is over. Every other method does it first where it matters."""
        now = self.clock.now()
        late = tuple(lease.lease_id for lease in self._open.values() if lease.expires_at <= now)
        for lease_id in late:
            self._end(lease_id, LeaseState.EXPIRED)
        return late

    def next_expiry(self) -> float | None:
        """On the table's clock; None when no lease is open."""
        return min((lease.expires_at for lease in self._open.values()), default=None)

    # -- what is

    @property
    def open_leases(self) -> int:
        return len(self._open)

    @property
    def untaken_requests(self) -> int:
        """Requests whose lease has ended and whose blocks wait for `take_ended`."""
        return len(self._untaken)

    @property
    def leased_blocks(self) -> int:
        return sum(len(lease.block_ids) for lease in self._open.values())

    @property
    def orphan_blocks(self) -> int:
        """Pinned although their lease has ended: waiting for `take_ended`."""
        return sum(len(lease.block_ids) for lease in self._untaken.values())

    def changes_after(self, sequence: int) -> LeaseChanges:
        """What changed since the report that ended at `sequence` (-1: none yet). A snapshot when
        that is too long ago, or of another incarnation's numbering."""
        self.expire()
        oldest = self._changes[0][0] if self._changes else self._sequence + 1
        if not oldest - 1 <= sequence <= self._sequence:
            return LeaseChanges(self._sequence, True, self._snapshot())
        later = tuple(change for number, change in self._changes if number > sequence)
        return LeaseChanges(self._sequence, False, later)

    def check_integrity(self) -> None:
        """Raises AssertionError when the table contradicts itself. For tests and debugging."""
        assert {self._by_request[lease.request_id] for lease in self._open.values()} == set(self._open)
        assert len(self._by_request) == len(self._open)
        assert not set(self._by_request) & set(self._untaken), "one lease a request"
        assert not set(self._open) & set(self._ended), "a lease is open or ended"
        assert set(self._done) <= set(self._open), "readers are known of open leases only"
        assert all(lease.epoch == self.epoch for lease in self._open.values())
        ends = self.counters.released + self.counters.expired
        assert self.counters.granted == len(self._open) + ends
        assert len(self._untaken) <= ends

    # -- inside

    def _check_grant(self, request_id: RequestId, block_ids: Sequence[int], lease_id: LeaseId) -> None:
        if request_id in self._by_request or request_id in self._untaken:
            raise InvalidRequest(f"request {request_id} holds a lease already")
        if lease_id in self._open or lease_id in self._ended:
            raise InvalidRequest(f"lease id {lease_id} was used before")
        if not block_ids:
            raise InvalidRequest(f"request {request_id} has no blocks to lease")

    def _end(self, lease_id: LeaseId, state: LeaseState) -> None:
        lease = self._open.pop(lease_id)
        self._done.pop(lease_id, None)
        del self._by_request[lease.request_id]
        self._untaken[lease.request_id] = lease
        self._ended[lease_id] = state
        if len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        if state is LeaseState.RELEASED:
            self.counters.released += 1
        else:
            self.counters.expired += 1
        self._record(lease, state)

    def _record(self, lease: Lease, state: LeaseState) -> None:
        self._sequence += 1
        self._changes.append((self._sequence, self._change(lease, state)))
        if len(self._changes) > REMEMBERED_CHANGES:
            self._changes.popleft()

    def _change(self, lease: Lease, state: LeaseState) -> LeaseChange:
        remaining = max(0.0, lease.expires_at - self.clock.now()) if state is LeaseState.GRANTED else 0.0
        return LeaseChange(lease.lease_id, state, len(lease.block_ids), remaining)

    def _snapshot(self) -> tuple[LeaseChange, ...]:
        return tuple(self._change(lease, LeaseState.GRANTED) for lease in self._open.values())
