"""When a block of one tier is written to the next: at once, or when it has to leave. Pure.

Write-through makes eviction instant and loses nothing with the upper tier, but writes what would have
been forgotten in time. Write-back writes only what leaves. AUTO writes through what is proven to be
reused as long as the lower tier is not busy, and back what is left.
"""

from dataclasses import dataclass
from enum import StrEnum

from llmserve.kvstore.eviction.admission import is_admitted


class WriteMode(StrEnum):
    BACK = "back"
    THROUGH = "through"
    AUTO = "auto"


class WriteStep(StrEnum):
    WRITE = "write"
    WAIT = "wait"  # until it leaves
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class LowerTier:
    """queued_bytes: writes that have not ended. busy_bytes: from so many on it is busy."""

    has_room: bool
    queued_bytes: int
    busy_bytes: int

    @property
    def is_busy(self) -> bool:
        return self.queued_bytes >= self.busy_bytes


def on_stored(mode: WriteMode, lower: LowerTier, *, proven: bool) -> WriteStep:
    """For a block that was stored in the upper tier, or has become proven there; not in the lower one."""
    if mode is WriteMode.BACK or lower.is_busy:
        return WriteStep.WAIT
    worth = is_admitted(proven=proven, has_room=lower.has_room) if mode is WriteMode.THROUGH else proven
    return WriteStep.WRITE if worth else WriteStep.WAIT


def on_evicted(lower: LowerTier, *, proven: bool, is_below: bool) -> WriteStep:
    """For a victim of the upper tier. A tier that is far behind (twice busy) takes only what is proven,
    and one that is four times so takes nothing: memory for what waits is bounded."""
    if is_below or lower.queued_bytes >= 4 * lower.busy_bytes:
        return WriteStep.DROP
    has_room = lower.has_room and lower.queued_bytes < 2 * lower.busy_bytes
    return WriteStep.WRITE if is_admitted(proven=proven, has_room=has_room) else WriteStep.DROP
