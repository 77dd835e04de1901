"""Leases on the device blocks of one worker incarnation, for readers in other processes. Pure.

A lease pins the blocks of a request. It ends by `release` or by its expiry, whichever comes first. Its blocks
stay pinned ("orphans") until the owner of the memory takes the ended request with `take_ended` and frees
them. Readers validate after they have read: only a release that answers VALID proves that the blocks were
pinned all the while.

Not thread-safe: the caller holds a lock when several threads use one object.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, TransferError
from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.lease_table import LeaseAnswer, LeaseTable
from llmserve.core.request import LeaseChange, LeaseState
from llmserve.transfer.devices import REACHED, Mark

REMEMBERED_CHANGES = 4096


@dataclass(slots=True)
class Lease:
    """written: the mark behind the kernels that write the blocks. released_by: readers that have released it,
    by number."""

    lease_id: LeaseId
    request_id: RequestId
    block_ids: tuple[int, ...]
    written: Mark
    released_by: set[int] = field(default_factory=set)


@dataclass(slots=True)
class LeaseCounters:
    """Totals since the start of the incarnation."""

    granted: int = 0
    renewed: int = 0
    released: int = 0
    expired: int = 0


class BlockLeases:
    """Every method ends the overdue leases first where it matters."""

    def __init__(self, epoch: int, lease_seconds: float, clock: Clock) -> None:
        """epoch: incarnation of the worker. lease_seconds: length of a grant and of a renewal."""
        self.epoch, self.lease_seconds = epoch, lease_seconds
        self.counters = LeaseCounters()
        self._open: LeaseTable[LeaseId, Lease] = LeaseTable(clock, epoch=epoch)
        self._by_request: dict[RequestId, LeaseId] = {}
        self._untaken: dict[RequestId, Lease] = {}
        self._changes: deque[LeaseChange] = deque(maxlen=REMEMBERED_CHANGES)

    # -- the owner of the blocks

    def grant(
        self,
        request_id: RequestId,
        block_ids: Sequence[int],
        lease_id: LeaseId | None = None,
        written: Mark = REACHED,
    ) -> Lease:
        """Pins blocks for a reader, who may begin once `written` is reached. Errors: InvalidRequest when the
        request holds a lease already (also one that has ended and was not taken), when the id was used
        before, or when there are no blocks."""
        lease_id = lease_id or LeaseId(f"{self.epoch:x}.{self.counters.granted:x}.{request_id}")
        self._check_grant(request_id, block_ids, lease_id)
        lease = Lease(lease_id, request_id, tuple(block_ids), written)
        self._open.grant(lease_id, lease, self.lease_seconds)
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
        """Ends the lease of a request from the owner's side. False: the request holds no open lease."""
        lease_id = self._by_request.get(request_id)
        return lease_id is not None and self.release(lease_id, self.epoch) is LeaseAnswer.VALID

    def take_changes(self) -> list[LeaseChange]:
        """Changes since the last call, in order; the oldest are lost beyond REMEMBERED_CHANGES."""
        self.expire()
        changes = list(self._changes)
        self._changes.clear()
        return changes

    # -- readers

    def check(self, lease_id: LeaseId, epoch: int) -> LeaseAnswer:
        """VALID: the blocks of the lease are pinned now."""
        self.expire()
        return self._open.check(lease_id, epoch)

    def renew(self, lease_id: LeaseId, epoch: int) -> LeaseAnswer:
        """Lets a VALID lease run for lease_seconds from now."""
        self.expire()
        answer = self._open.renew(lease_id, self.lease_seconds, epoch)
        self.counters.renewed += answer is LeaseAnswer.VALID
        return answer

    def begin(self, lease_id: LeaseId, epoch: int) -> LeaseAnswer:
        """Renews a lease for a reader. VALID: its blocks may be read now. UNKNOWN also while they are still
        being written. Errors: TransferError when writing them failed; the lease has ended then."""
        answer = self.renew(lease_id, epoch)
        if answer is not LeaseAnswer.VALID:
            return answer
        lease = self._open[lease_id]
        try:
            return LeaseAnswer.VALID if lease.written.reached() else LeaseAnswer.UNKNOWN
        except TransferError:
            self.withdraw(lease.request_id)
            raise

    def release(self, lease_id: LeaseId, epoch: int, reader: int = 0, readers: int = 1) -> LeaseAnswer:
        """Ends a lease when all its readers have released it. VALID: it was open until now, so what was read
        under it is true."""
        answer = self.check(lease_id, epoch)
        if answer is LeaseAnswer.VALID:
            lease = self._open[lease_id]
            lease.released_by.add(reader)
            if len(lease.released_by) >= readers:
                self._end(self._open.release(lease_id), LeaseState.RELEASED)
                self.counters.released += 1
        return answer

    # -- time and state

    def expire(self) -> None:
        """Ends the overdue leases."""
        for _, lease in self._open.take_expired():
            self._end(lease, LeaseState.EXPIRED)
            self.counters.expired += 1

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
        """Blocks that are pinned although their lease has ended; they wait for `take_ended`."""
        return sum(len(lease.block_ids) for lease in self._untaken.values())

    def check_integrity(self) -> None:
        """Raises AssertionError if the leases contradict each other. For tests and debugging."""
        self._open.check_integrity()
        assert {lease.request_id: lease.lease_id for lease in self._open.values()} == self._by_request
        assert not self._by_request.keys() & self._untaken.keys(), "a request has one lease"
        ends = self.counters.released + self.counters.expired
        assert self.counters.granted == len(self._open) + ends
        assert len(self._untaken) <= ends

    # -- inside

    def _check_grant(self, request_id: RequestId, block_ids: Sequence[int], lease_id: LeaseId) -> None:
        if request_id in self._by_request or request_id in self._untaken:
            raise InvalidRequest(f"request {request_id} holds a lease already")
        if self._open.check(lease_id, self.epoch) is not LeaseAnswer.UNKNOWN:
            raise InvalidRequest(f"lease id {lease_id} was used before")
        if not block_ids:
            raise InvalidRequest(f"request {request_id} has no blocks to lease")

    def _end(self, lease: Lease, state: LeaseState) -> None:
        del self._by_request[lease.request_id]
        self._untaken[lease.request_id] = lease
        self._record(lease, state)

    def _record(self, lease: Lease, state: LeaseState) -> None:
        remaining = self.lease_seconds if state is LeaseState.GRANTED else 0.0
        self._changes.append(LeaseChange(lease.lease_id, state, len(lease.block_ids), remaining))
