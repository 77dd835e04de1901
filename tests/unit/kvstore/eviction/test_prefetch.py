from collections.abc import Sequence

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction import BlockAt, PromotionLimits, promotions


def _at(loads: Sequence[float]) -> list[BlockAt]:
    return [BlockAt(BlockHash(str(n).encode()), 10, seconds) for n, seconds in enumerate(loads)]


def _chosen(loads: Sequence[float], wait: float = 0.0, compute: float = 1.0, room: int = 1000) -> str:
    keys = promotions(_at(loads), PromotionLimits(wait, compute, room))
    return b"".join(keys).decode()


def test_what_is_up_already_is_left_alone() -> None:
    assert _chosen([0, 0, 0.1, 0.1]) == "23"
    assert _chosen([]) == ""


def test_what_computes_sooner_is_not_loaded() -> None:
    assert _chosen([1.5, 0.1], compute=1.0) == ""
    assert _chosen([1.5, 0.1], compute=1.0, wait=0.5) == "01"
    assert _chosen([0.9, 0.9, 1.3, 0.1]) == "01"


def test_blocks_that_are_up_buy_no_gap() -> None:
    """Those that follow a block which is not worth loading are no use without it."""
    assert _chosen([0.5, 9.0, 0.0, 0.1]) == "0"


def test_room_is_kept_to() -> None:
    assert _chosen([0.1] * 5, room=25) == "01"
    assert _chosen([0.1] * 5, room=20) == "01", "blocks that fit exactly"
