from collections.abc import Sequence

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction import BlockAt, PromotionLimits, promotions, usual_followers


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


def _followers(uses: dict[str, int], last: str, most: int = 10) -> str:
    """Blocks are named by their prompt; what follows is one letter longer."""
    keys = {BlockHash(name.encode()): count for name, count in uses.items()}

    def after(key: BlockHash) -> list[BlockHash]:
        return [other for other in keys if other.startswith(key) and len(other) == len(key) + 1]

    path = usual_followers(BlockHash(last.encode()), after, lambda asked: [keys[key] for key in asked], most)
    return path[-1].decode() if path else ""


def test_the_usual_path_is_followed() -> None:
    uses = {"a": 10, "ab": 9, "ac": 1, "abd": 8, "abe": 1, "abdf": 2}
    assert _followers(uses, "a") == "abd"
    assert _followers(uses, "a", most=1) == "ab"


def test_a_fork_ends_it() -> None:
    assert _followers({"a": 10, "ab": 4, "ac": 4}, "a") == ""


def test_what_was_asked_for_once_is_not_usual() -> None:
    assert _followers({"a": 1, "ab": 1}, "a") == ""


def test_nothing_follows() -> None:
    assert _followers({"a": 3}, "a") == ""
