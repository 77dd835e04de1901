"""What sets the policies apart; what they share is in tests/conformance/test_eviction.py."""

import pytest

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction import ArcPolicy, EvictionPolicy, S3FifoPolicy
from tests.support.lru_policy import LruPolicy


def _key(name: object) -> BlockHash:
    return BlockHash(str(name).encode())


def _evict(policy: EvictionPolicy) -> BlockHash:
    key = next(policy.candidates())
    policy.remove(key, evicted=True)
    return key


def _fill(policy: EvictionPolicy, names: object, room: int) -> None:
    """One by one, as a tier of that many blocks would."""
    for name in names:  # type: ignore[attr-defined]
        if len(policy) == room:
            _evict(policy)
        policy.add(_key(name), 1)


def _held(policy: EvictionPolicy) -> set[BlockHash]:
    return set(policy.candidates())


def test_lru_goes_by_last_use() -> None:
    policy = LruPolicy()
    _fill(policy, "abc", 3)
    policy.touch(_key("a"))
    assert [_evict(policy) for _ in range(3)] == [_key("b"), _key("c"), _key("a")]


def test_s3fifo_keeps_what_was_used_through_a_scan() -> None:
    policy, lru = S3FifoPolicy(), LruPolicy()
    for each in (policy, lru):
        _fill(each, range(20), 20)
        for number in range(15):
            each.touch(_key(number))
        _fill(each, (f"scan{number}" for number in range(60)), 20)
    kept = {_key(number) for number in range(15)}
    assert len(kept & _held(policy)) >= 14
    assert not kept & _held(lru)


def test_s3fifo_lets_go_in_the_end_of_what_is_no_longer_used() -> None:
    policy = S3FifoPolicy()
    _fill(policy, ("a", *range(9)), 10)
    for _ in range(9):
        policy.touch(_key("a"))
    for number in range(200):  # all of these are used once, too
        _fill(policy, [f"n{number}"], 10)
        policy.touch(_key(f"n{number}"))
    assert _key("a") not in _held(policy)


def test_s3fifo_trusts_what_returns_soon() -> None:
    policy = S3FifoPolicy()
    _fill(policy, range(10), 10)
    gone = _evict(policy)
    policy.add(gone, 1)
    policy.check_integrity()
    _fill(policy, (f"scan{number}" for number in range(30)), 10)
    assert gone in _held(policy)
    policy.check_integrity()


def test_s3fifo_leaves_newcomers_their_tenth() -> None:
    policy = S3FifoPolicy()
    _fill(policy, range(10), 10)
    for number in range(10):
        policy.touch(_key(number))
    assert _evict(policy) == _key(0)  # all passed probation; the oldest goes
    policy.add(_key("new"), 1)
    assert _evict(policy) == _key(1)
    assert _key("new") in _held(policy)


def test_s3fifo_forgets_what_left_long_ago() -> None:
    policy = S3FifoPolicy()
    _fill(policy, range(10_000), 10)
    assert len(policy._left) <= 10


def test_arc_keeps_what_was_used_through_a_scan() -> None:
    policy = ArcPolicy()
    _fill(policy, range(20), 20)
    for number in range(10):
        policy.touch(_key(number))
    _fill(policy, (f"scan{number}" for number in range(60)), 20)
    assert {_key(number) for number in range(10)} <= _held(policy)


def test_arc_learns_that_recency_matters_and_unlearns_it() -> None:
    policy = ArcPolicy()
    _fill(policy, range(10), 10)
    for number in range(5):
        policy.touch(_key(number))
    gone = _evict(policy)
    assert gone == _key(5)
    policy.add(gone, 1)  # it left too soon
    assert policy._target_bytes == 1
    for key in list(policy._again)[:2]:
        policy.remove(key, evicted=True)
        policy.add(key, 1)
    assert policy._target_bytes == 0


def test_arc_trusts_what_returns_soon() -> None:
    policy = ArcPolicy()
    _fill(policy, "abc", 3)
    gone = _evict(policy)
    policy.add(gone, 1)
    policy.check_integrity()
    policy.add(_key("new"), 1)
    assert list(policy.candidates()) == [*map(_key, ("b", "c", "new")), gone]


def _arc_that_lost(*, once: int, again: int) -> ArcPolicy:
    """Has evicted so many blocks of one byte that were used once, and so many that were used again; half of
    its 200 bytes should be for the first kind."""
    policy = ArcPolicy()
    policy.add(_key("held"), 200)
    names = [_key(f"once{number}") for number in range(once)]
    names_again = [_key(f"again{number}") for number in range(again)]
    for key in (*names, *names_again):
        policy.add(key, 1)
    for key in names_again:
        policy.touch(key)
    for key in (*names, *names_again):
        policy.remove(key, evicted=True)
    policy._target_bytes = 100.0
    return policy


@pytest.mark.parametrize(("kind", "other", "times"), [(1, 3, 3), (2, 6, 3), (3, 1, 1), (2, 2, 1)])
def test_arc_moves_its_border_further_for_the_rarer_kind_of_return(kind: int, other: int, times: int) -> None:
    policy = _arc_that_lost(once=kind, again=other)
    policy.add(_key("once0"), 5)
    assert policy._target_bytes == 100 + 5 * times
    policy = _arc_that_lost(once=other, again=kind)
    policy.add(_key("again0"), 5)
    assert policy._target_bytes == 100 - 5 * times


def test_arc_remembers_no_more_than_it_holds() -> None:
    policy = ArcPolicy()
    _fill(policy, range(10_000), 10)
    assert len(policy._left_once) + len(policy._left_again) <= 20
    for number in range(100):
        policy.add(_key(f"used{number}"), 1)
        policy.touch(_key(f"used{number}"))
        policy.remove(_key(f"used{number}"), evicted=True)
    assert len(policy._left_again) == len(policy) == 10
    policy.check_integrity()


def test_arc_goes_by_last_use_among_those_used_again() -> None:
    policy = ArcPolicy()
    _fill(policy, "abc", 3)
    for name in "aba":
        policy.touch(_key(name))
    assert len(policy) == 3
    policy.remove(_key("c"), evicted=False)
    assert list(policy.candidates()) == [_key("b"), _key("a")]


def test_s3fifo_gives_a_round_in_the_main_queue_for_each_use() -> None:
    policy = S3FifoPolicy()
    _fill(policy, range(4), 4)
    for number in range(4):
        policy.touch(_key(number))
    assert _evict(policy) == _key(0)  # the others are in the main queue now
    for _ in range(2):
        policy.touch(_key(1))
    policy.touch(_key(2))
    assert [_evict(policy) for _ in range(3)] == [_key(3), _key(2), _key(1)]


@pytest.mark.parametrize(
    ("uses_of_a", "uses_of_b", "goes_first"),
    [(1, 1, "a"), (2, 1, "b"), (2, 3, "a"), (3, 2, "b"), (9, 3, "a"), (4, 9, "a")],
)
def test_s3fifo_counts_up_to_three_uses(uses_of_a: int, uses_of_b: int, goes_first: str) -> None:
    policy = S3FifoPolicy()
    _fill(policy, "abc", 3)
    for name in "ab":
        policy.touch(_key(name))
    assert _evict(policy) == _key("c")  # the others are in the main queue now
    for name, uses in (("a", uses_of_a), ("b", uses_of_b)):
        for _ in range(uses):
            policy.touch(_key(name))
    assert _evict(policy) == _key(goes_first)


def test_s3fifo_forgets_the_uses_of_a_block_that_is_removed() -> None:
    policy = S3FifoPolicy()
    _fill(policy, "ab", 2)
    policy.touch(_key("a"))
    for name in "ab":
        policy.remove(_key(name), evicted=False)
        policy.check_integrity()
        policy.add(_key(name), 1)
    assert list(policy.candidates()) == [_key("a"), _key("b")]


def test_arc_takes_from_the_queue_that_has_more_than_its_share() -> None:
    policy = ArcPolicy()
    _fill(policy, "ab", 2)
    policy.touch(_key("a"))
    assert list(policy.candidates()) == [_key("b"), _key("a")], "one byte is used once, its share is none"
    policy._target_bytes = 1
    assert list(policy.candidates()) == [_key("a"), _key("b")], "its share exactly"


def test_arc_takes_what_was_used_once_while_nothing_was_used_again() -> None:
    policy = ArcPolicy()
    _fill(policy, "ab", 2)
    policy._target_bytes = 2
    policy.remove(_key("a"), evicted=False)
    assert list(policy.candidates()) == [_key("b")]
