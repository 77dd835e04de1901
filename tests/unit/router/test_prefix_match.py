from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory import KvTier
from llmserve.router.prefix_match import PrefixMatch, StoredRun

X, Y = WorkerId("x"), WorkerId("y")
MATCH = PrefixMatch(
    16,
    {X: 5, Y: 2},
    (StoredRun(0, 3, KvTier.DRAM), StoredRun(3, 7, KvTier.NVME), StoredRun(8, 9, KvTier.NVME)),
)


def test_what_can_be_loaded_begins_where_the_device_ends_and_stops_at_a_gap() -> None:
    assert MATCH.loadable(2) == (StoredRun(2, 3, KvTier.DRAM), StoredRun(3, 7, KvTier.NVME))
    assert MATCH.loadable(7) == ()
    assert MATCH.loadable(8) == (StoredRun(8, 9, KvTier.NVME),)
    assert [MATCH.reach(have) for have in (0, 5, 7, 8, 20)] == [7, 7, 7, 9, 20]


def test_cached_tokens_of_a_worker_and_of_the_best() -> None:
    assert MATCH.cached_tokens(X, 1000) == 7 * 16
    assert PrefixMatch(16, {X: 5, Y: 2}).cached_tokens(X, 1000) == 5 * 16
    assert PrefixMatch(16, {X: 5, Y: 2}).cached_tokens(WorkerId("z"), 1000) == 0
    assert PrefixMatch(16, {X: 5, Y: 2}).best_cached_tokens(1000) == 5 * 16
    assert MATCH.best_cached_tokens(1000) == 7 * 16


def test_the_last_token_is_always_computed_and_nothing_known_is_nothing_cached() -> None:
    assert PrefixMatch(16, {X: 5}).cached_tokens(X, 80) == 4 * 16
    assert PrefixMatch(16, {X: 5}).cached_tokens(X, 81) == 5 * 16
    assert PrefixMatch(16, {X: 5}).cached_tokens(X, 0) == 0
    assert PrefixMatch().best_cached_tokens(100) == 0
