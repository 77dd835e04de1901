"""Blocks of this process that others may write into: the fence of the receiving end. Pure.

Not thread-safe: it belongs to one loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from llmserve.core.clock import SystemClock
from llmserve.core.ids import ReservationId
from llmserve.core.lease_table import REMEMBERED_ENDS, LeaseAnswer, LeaseTable


class Writes(Enum):
    """What may still happen to blocks whose reservation was closed."""

    NEVER_BEGAN = "never began"  # and never will: the blocks are free now
    MAY_GO_ON = "may go on"  # only the writer, or a fence, can tell their end
    ENDED = "ended"  # the writer has said so


@dataclass(slots=True)
class _Reserved:
    """fences: how often each transport had been fenced when the writer was let in."""

    begun: bool = False
    ended: bool = False
    fences: Mapping[str, int] = field(default_factory=dict)


class ReservationTable:
    """epoch: of this incarnation. A reservation is open until `close`, and never expires; the writer is let
    in at most once, and only while it is open."""

    def __init__(self, epoch: int, remembered_ends: int = REMEMBERED_ENDS) -> None:
        """remembered_ends: see LeaseTable."""
        self.epoch = epoch
        self._open: LeaseTable[ReservationId, _Reserved] = LeaseTable(
            SystemClock(), epoch=epoch, remembered_ends=remembered_ends
        )

    def __len__(self) -> int:
        return len(self._open)

    # -- the owner of the blocks

    def open(self, reservation_id: ReservationId) -> None:
        assert reservation_id not in self._open, "reservation ids are used once"
        self._open.grant(reservation_id, _Reserved())

    def close(self, reservation_id: ReservationId) -> Writes:
        """From now on nobody is let in. The caller frees the blocks when writes have ended."""
        entry = self._open.release(reservation_id)
        if not entry.begun:
            return Writes.NEVER_BEGAN
        return Writes.ENDED if entry.ended else Writes.MAY_GO_ON

    def fences_at_begin(self, reservation_id: ReservationId) -> Mapping[str, int]:
        return self._open[reservation_id].fences

    # -- the writer

    def begin(self, reservation_id: ReservationId, epoch: int, fences: Mapping[str, int]) -> LeaseAnswer:
        """The first write follows. VALID only once."""
        answer = self._open.check(reservation_id, epoch)
        if answer is not LeaseAnswer.VALID:
            return answer
        entry = self._open[reservation_id]
        if entry.begun:
            return LeaseAnswer.ENDED
        entry.begun, entry.fences = True, dict(fences)
        return LeaseAnswer.VALID

    def end(self, reservation_id: ReservationId, epoch: int) -> LeaseAnswer:
        """No write follows, whatever came of them. VALID also when it is said again."""
        answer = self._open.check(reservation_id, epoch)
        if answer is LeaseAnswer.VALID:
            entry = self._open[reservation_id]
            entry.begun = entry.ended = True
        return answer

    def check_integrity(self) -> None:
        """Raises AssertionError if the table contradicts itself. For tests and debugging."""
        self._open.check_integrity()
        assert all(entry.begun or not entry.ended for entry in self._open.values())
