"""What of a prompt need not be computed, in tokens."""

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory.directory import KvTier
from llmserve.router.prefix.match import PrefixMatch, TierRun

X, Y, Z = WorkerId("x"), WorkerId("y"), WorkerId("z")
# Blocks 0 to 2 in DRAM, 3 to 6 in NVMe, 7 on devices only, 8 in NVMe.
TIERS = (TierRun(KvTier.DRAM, 3), TierRun(KvTier.NVME, 4), TierRun(None, 1), TierRun(KvTier.NVME, 1))
MATCH = PrefixMatch({X: 8, Y: 2}, TIERS, block_tokens=16)


def test_a_worker_loads_from_where_its_device_ends_up_to_a_gap() -> None:
    assert [MATCH.cached_tokens(worker, 1000) // 16 for worker in (X, Y, Z)] == [9, 7, 7]
    assert MATCH.best_cached_tokens(1000) == 9 * 16


def test_without_tiers_it_is_what_the_device_has() -> None:
    match = PrefixMatch({X: 5, Y: 2}, (TierRun(None, 5),), block_tokens=16)
    assert [match.cached_tokens(worker, 1000) // 16 for worker in (X, Y, Z)] == [5, 2, 0]
    assert match.best_cached_tokens(1000) == 5 * 16


def test_the_last_token_is_always_computed_and_nothing_known_is_nothing_cached() -> None:
    match = PrefixMatch({X: 5}, (TierRun(None, 5),), block_tokens=16)
    assert [match.cached_tokens(X, tokens) // 16 for tokens in (0, 80, 81)] == [0, 4, 5]
    assert PrefixMatch().best_cached_tokens(100) == 0
    assert PrefixMatch(block_tokens=16).best_cached_tokens(100) == 0


def test_of_blocks_of_one_token_the_last_is_computed() -> None:
    match = PrefixMatch({X: 5}, (TierRun(None, 5),), block_tokens=1)
    assert [match.cached_tokens(X, tokens) for tokens in (0, 1, 3, 9)] == [0, 0, 2, 5]
