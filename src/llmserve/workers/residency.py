"""Which block is where: what this worker holds on its device and under which leases, and what of that the
KV manager has not been told. Pure.
"""

from dataclasses import dataclass, replace

from llmserve.core.clock import Clock
from llmserve.core.ids import LeaseId
from llmserve.core.lease import LeaseChange, LeaseState
from llmserve.core.request import KvEvents


@dataclass(frozen=True, slots=True)
class Report:
    """One KvReport (kvmanager.proto). Applied in the order: cleared, removed, stored."""

    sequence: int
    snapshot: bool
    stored: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    cleared: bool = False
    leases: tuple[LeaseChange, ...] = ()


@dataclass(frozen=True, slots=True)
class _OpenLease:
    change: LeaseChange
    until: float


class Residency:
    """Sequence numbers count the reports of an incarnation, from 1."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._blocks: dict[bytes, None] = {}
        self._leases: dict[LeaseId, _OpenLease] = {}
        self._sequence = 0
        self._stored: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        self._cleared = False
        self._changes: list[LeaseChange] = []

    @property
    def device_blocks(self) -> int:
        return len(self._blocks)

    @property
    def has_changes(self) -> bool:
        return bool(self._stored or self._removed or self._cleared or self._changes)

    def apply(self, events: KvEvents) -> None:
        if events.cleared:
            self._clear()
        for block_hash in events.removed:
            self._blocks.pop(block_hash, None)
            self._stored.pop(block_hash, None)
            self._removed[block_hash] = None
        for block_hash in events.stored:
            self._blocks[block_hash] = None
            self._stored[block_hash] = None
        for change in events.leases:
            self._apply_lease(change)

    def _clear(self) -> None:
        self._blocks, self._stored, self._removed = {}, {}, {}
        self._cleared = True

    def _apply_lease(self, change: LeaseChange) -> None:
        self._changes.append(change)
        if change.state is LeaseState.GRANTED:
            self._leases[change.lease_id] = _OpenLease(change, self._clock.now() + change.remaining_seconds)
        else:
            self._leases.pop(change.lease_id, None)

    def take_delta(self) -> Report:
        """What changed since the last report."""
        report = Report(
            sequence=self._next_sequence(),
            snapshot=False,
            stored=tuple(self._stored),
            removed=tuple(self._removed),
            cleared=self._cleared,
            leases=tuple(self._changes),
        )
        self._forget_changes()
        return report

    def take_snapshot(self) -> Report:
        """The whole truth; changes up to now are part of it."""
        now = self._clock.now()
        leases = tuple(
            replace(lease.change, remaining_seconds=max(0.0, lease.until - now))
            for lease in self._leases.values()
        )
        self._forget_changes()
        return Report(self._next_sequence(), True, stored=tuple(self._blocks), leases=leases)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _forget_changes(self) -> None:
        self._stored, self._removed, self._cleared, self._changes = {}, {}, False, []
