"""What to bring up to DRAM before it is asked for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.ids import BlockHash


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
    """Of the leading blocks that are held somewhere, in order and without a gap: those to bring up for a
    queued request. In order, as far as they come sooner than they could be computed."""
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
