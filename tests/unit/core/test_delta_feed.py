import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.delta_feed import Delta, DeltaFeed


def _started(*keys: str) -> DeltaFeed[str]:
    """A feed whose receiver has these keys."""
    feed: DeltaFeed[str] = DeltaFeed()
    feed.store(keys)
    feed.take()
    return feed


def _waits(feed: DeltaFeed[str]) -> bool:
    return feed.has_changes


def test_the_first_delta_is_a_snapshot_and_then_changes_follow() -> None:
    feed: DeltaFeed[str] = DeltaFeed()
    feed.store("ab")
    assert feed.take() == Delta(1, True, (), ("a", "b"))
    assert not _waits(feed)
    feed.store("c")
    feed.remove("a")
    assert _waits(feed)
    assert feed.take() == Delta(2, False, ("a",), ("c",))
    assert feed.take() == Delta(3, False, (), ())


def test_a_key_that_came_and_went_before_the_snapshot_costs_nothing() -> None:
    feed: DeltaFeed[str] = DeltaFeed()
    feed.store("ab")
    feed.remove("a")
    assert feed.removals == 0
    assert feed.take() == Delta(1, True, (), ("b",))


def test_only_the_last_change_of_a_key_is_sent() -> None:
    feed = _started("a")
    feed.remove("a")
    feed.store("ab")
    feed.remove("b")
    assert feed.take() == Delta(2, False, ("b",), ("a",))


def test_a_reset_sends_the_whole_set_again() -> None:
    feed = _started("a")
    feed.remove("a")
    feed.store("b")
    feed.reset("cd")
    assert (feed.removals, feed.has_changes) == (0, True)
    assert feed.take() == Delta(2, True, (), ("c", "d"))
    assert feed.take() == Delta(3, False, (), ()), "the snapshot is sent once"


def test_a_snapshot_of_nothing_waits_to_be_sent() -> None:
    feed = _started("a")
    feed.reset(())
    assert feed.has_changes
    assert feed.take() == Delta(2, True, (), ())


def test_removals_alone_are_changes() -> None:
    feed = _started("a")
    feed.remove("a")
    assert (feed.has_changes, feed.removals) == (True, 1)


def test_a_delta_has_at_most_so_many_keys_removed_ones_first() -> None:
    feed = _started("a", "b", "c")
    feed.remove("abc")
    feed.store("xy")
    assert feed.take(2) == Delta(2, False, ("a", "b"), ())
    assert feed.take(2) == Delta(3, False, ("c",), ("x",))
    assert _waits(feed)
    assert feed.take(2) == Delta(4, False, (), ("y",))
    assert not _waits(feed)


def test_a_snapshot_in_pieces() -> None:
    feed: DeltaFeed[str] = DeltaFeed()
    feed.store("abc")
    assert feed.take(2) == Delta(1, True, (), ("a", "b"))
    feed.remove("a")
    assert feed.take(2) == Delta(2, False, ("a",), ("c",)), "the receiver has `a` by now"


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_a_receiver_that_applies_every_delta_has_the_set(seed: int) -> None:
    rng, truth, copy = random.Random(seed), set[int](), set[int]()
    feed: DeltaFeed[int] = DeltaFeed()

    def apply(delta: Delta[int]) -> None:
        assert not set(delta.removed) & set(delta.stored)
        copy.difference_update(copy if delta.is_snapshot else delta.removed)
        copy.update(delta.stored)

    for _ in range(40):
        keys = rng.sample(range(8), rng.randrange(4))
        match rng.randrange(4):
            case 0:
                feed.store(keys)
                truth |= set(keys)
            case 1:
                feed.remove(keys)
                truth -= set(keys)
            case 2 if rng.random() < 0.3:
                truth = set(keys)
                feed.reset(keys)
            case _:
                apply(feed.take(rng.choice([None, 1, 3])))
    while feed.has_changes:
        apply(feed.take(2))
    assert copy == truth
