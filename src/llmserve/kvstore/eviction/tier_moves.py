"""When blocks move between tiers: down at once or when they leave, up before they are asked for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.ids import BlockHash
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


@dataclass(frozen=True, slots=True)
class BlockAt:
    """The best place of one block of a queued prompt. load_seconds: to bring it up, with what is queued
    there; 0 when it is up already."""

    key: BlockHash
    size_bytes: int
    load_seconds: float


@dataclass(frozen=True, slots=True)
class PromotionLimits:
    """wait_seconds: how long the request is expected to be queued yet. compute_seconds: of one block, on
    the engine. room_bytes: what may be brought up now."""

    wait_seconds: float
    compute_seconds: float
    room_bytes: int


def promotions(found: Sequence[BlockAt], limits: PromotionLimits) -> list[BlockHash]:
    """Chooses which blocks to bring up for a queued request, among its leading blocks that are held somewhere
    (in order, without a gap): those that come sooner than they could be computed."""
    chosen: list[BlockHash] = []
    spent, saved, room_bytes = 0.0, limits.wait_seconds, limits.room_bytes
    for block in found:
        saved += limits.compute_seconds
        if not block.load_seconds:
            continue
        spent, room_bytes = spent + block.load_seconds, room_bytes - block.size_bytes
        if spent > saved or room_bytes < 0:
            break
        chosen.append(block.key)
    return chosen
