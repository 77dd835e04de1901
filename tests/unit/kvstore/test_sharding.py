from collections import Counter
from itertools import pairwise

import pytest

from llmserve.core.ids import BlockHash
from llmserve.kvstore.sharding import Sharding

RUNS = 4000


def _prompt(name: str, blocks: int) -> list[BlockHash]:
    return [BlockHash(f"{name}/{number}".encode()) for number in range(blocks)]


def _places(weights: dict[str, float]) -> list[str]:
    """Of runs of one block."""
    sharding = Sharding(weights, run_blocks=1)
    return [sharding.shards([block])[0].manager for block in _prompt("p", RUNS)]


def _even(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_runs_are_spread_evenly(count: int) -> None:
    held = Counter(_places(_even(*(f"m{number}" for number in range(count)))))
    share = RUNS / count
    assert len(held) == count
    assert all(abs(runs - share) < 4 * share**0.5 for runs in held.values()), held


def test_weights_are_shares() -> None:
    held = Counter(_places({"small": 1.0, "large": 3.0}))
    assert abs(held["large"] / RUNS - 0.75) < 0.03


def test_a_manager_that_leaves_moves_only_its_own_runs() -> None:
    before, after = _places(_even("a", "b", "c", "d")), _places(_even("a", "b", "d"))
    assert all(was in (now, "c") for was, now in zip(before, after, strict=True))
    moved = Counter(now for was, now in zip(before, after, strict=True) if was == "c")
    assert min(moved.values()) > 0.25 * moved.total()  # to all others alike


def test_a_manager_that_comes_takes_only_its_share() -> None:
    before, after = _places(_even("a", "b", "c")), _places(_even("a", "b", "c", "d"))
    moved = [now for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {"d"}
    assert abs(len(moved) / RUNS - 0.25) < 0.03


def test_more_weight_moves_runs_only_to_it() -> None:
    before, after = _places(_even("a", "b", "c")), _places({"a": 1.0, "b": 1.0, "c": 2.0})
    assert {now for was, now in zip(before, after, strict=True) if was != now} == {"c"}


def test_every_process_finds_the_same() -> None:
    """Fixed values: processes of several versions run side by side."""
    for order in ("012", "201"):
        sharding = Sharding(_even(*(f"kvmanager-{number}" for number in order)), run_blocks=2)
        parts = sharding.shards(_prompt("p", 20))
        assert "".join(part.manager[-1] for part in parts) == "10102010"


def test_neighbours_stay_together() -> None:
    sharding = Sharding(_even("a", "b", "c"))
    parts = sharding.shards(_prompt("p", 1000))
    assert len(parts) <= 16
    assert parts[0].start == 0
    assert parts[-1].stop == 1000
    assert all(one.stop == next_.start for one, next_ in pairwise(parts))
    assert sharding.shards([]) == []


def test_a_longer_prompt_keeps_the_places_of_its_prefix() -> None:
    sharding = Sharding(_even("a", "b", "c"), run_blocks=4)

    def of_blocks(count: int) -> list[str]:
        return [
            part.manager
            for part in sharding.shards(_prompt("p", count))
            for _ in range(part.start, part.stop)
        ]

    assert of_blocks(30)[:13] == of_blocks(13)
