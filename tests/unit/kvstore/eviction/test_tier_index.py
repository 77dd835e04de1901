"""How a book chooses; what it promises is in tests/conformance/test_eviction.py."""

from collections.abc import Iterator
from weakref import WeakSet

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.core.stats import EvictReason
from llmserve.kvstore.eviction import NOBODY, Added, EvictionRules, TierIndex
from tests.support.lru_policy import LruPolicy

X, Y = TenantId("x"), TenantId("y")


def _keys(names: str) -> list[BlockHash]:
    return [BlockHash(name.encode()) for name in names]


class Watched(LruPolicy):
    """Counts how often it is asked, and how far."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.steps = 0

    def candidates(self) -> Iterator[BlockHash]:
        self.asked += 1
        for key in super().candidates():
            self.steps += 1
            yield key


@pytest.fixture
def policy() -> Watched:
    return Watched()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def _book(policy: Watched, clock: VirtualClock, rules: EvictionRules | None = None) -> TierIndex:
    """Of three blocks in a row: a, b, c."""
    book = TierIndex(3, lambda: policy, clock, rules)
    a, b, c = _keys("abc")
    for parent, key in ((None, a), (a, b), (b, c)):
        book.add(key, parent, 1, X)
    return book


def test_after_use_the_first_candidate_is_the_end(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    book.touch(_keys("abc"))
    assert list(policy.candidates()) == _keys("cba")


def test_a_search_in_vain_is_not_repeated(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock, EvictionRules(hot_keep_seconds=5))
    for _ in range(10):
        assert book.make_room(1, X) == []
    assert (policy.asked, policy.steps) == (1, 3)
    clock.advance(5)
    assert len(book.make_room(1, X)) == 1


class FirstIn(Watched):
    """Does not care for use, as the queues of S3-FIFO in part."""

    def touch(self, key: BlockHash) -> None:
        pass


def test_among_hot_blocks_the_cool_one_is_found_soon(clock: VirtualClock) -> None:
    policy = FirstIn()
    book = TierIndex(1000, lambda: policy, clock, EvictionRules(hot_keep_seconds=5))
    keys = [BlockHash(str(number).encode()) for number in range(1000)]
    for key in keys:
        book.add(key, None, 1, X)
    clock.advance(5)
    book.touch([key for key in keys if key != keys[900]])
    assert [victim.key for victim in book.make_room(1, X)] == [keys[900]]
    assert policy.steps < 200


def test_a_search_by_age_ends_at_the_first_hot_block(clock: VirtualClock) -> None:
    touched: list[BlockHash] = []

    class Touched(FirstIn):
        def touch(self, key: BlockHash) -> None:
            touched.append(key)

    book = TierIndex(100, Touched, clock, EvictionRules(hot_keep_seconds=5))
    keys = [BlockHash(str(number).encode()) for number in range(100)]
    for key in keys:
        book.add(key, None, 1, X)
    book.pin([keys[0], keys[99]])
    assert book.make_room(1, X) == []
    assert set(touched) == {keys[0]}, "the other pinned block comes after hot ones"


def test_a_block_that_is_added_after_a_search_in_vain_is_found_when_it_is_cool(
    policy: Watched, clock: VirtualClock
) -> None:
    book = TierIndex(2, lambda: policy, clock, EvictionRules(hot_keep_seconds=5))
    a, b = _keys("ab")
    book.add(a, None, 1, X)
    book.pin([a])
    clock.advance(5)
    assert book.make_room(2, X) == []
    book.add(b, None, 1, X)
    asked = policy.asked
    clock.advance(4.5)
    assert book.make_room(2, X) == []
    assert policy.asked == asked, "the new block cannot go before it is cool"
    clock.advance(0.5)
    assert [victim.key for victim in book.make_room(2, X)] == [b]


def test_a_removal_lets_a_search_in_vain_be_repeated(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    book.pin(_keys("c"))
    assert book.make_room(1, X) == []
    book.remove(_keys("c")[0])
    assert [victim.key for victim in book.make_room(2, X)] == _keys("b")


def test_a_block_that_is_removed_is_no_longer_looked_for(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock, EvictionRules(hot_keep_seconds=5))
    book.remove(_keys("a")[0])
    book.check_integrity()


def test_pinned_blocks_are_passed_once(policy: Watched, clock: VirtualClock) -> None:
    book = TierIndex(10, lambda: policy, clock)
    for key in _keys("abcdefghij"):
        book.add(key, None, 1, X)
    book.pin(_keys("abcde"))
    assert [victim.key for victim in book.make_room(5, X)] == _keys("fghij")
    assert policy.steps == 6 + 5


def test_tenants_take_turns_by_age(clock: VirtualClock) -> None:
    book = TierIndex(4, LruPolicy, clock)
    for key, tenant in (("a", X), ("c", Y), ("d", Y), ("b", X)):
        clock.advance(1)
        book.add(BlockHash(key.encode()), None, 1, tenant)
    assert [victim.key for victim in book.make_room(4, X)] == _keys("acdb")


def test_what_is_proven_is_said_of_the_victim(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    book.prove(_keys("abz"))
    victims = {victim.key: victim for victim in book.make_room(3, X)}
    assert [victims[key].proven for key in _keys("abc")] == [True, True, False]
    assert [victims[key].parent for key in _keys("bc")] == _keys("ab")
    assert victims[BlockHash(b"a")].parent is None


def test_proof_ends_with_the_block(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    b, c = _keys("bc")
    book.prove([c])
    assert (book.is_proven(c), book.is_proven(b)) == (True, False)
    book.remove(c)
    assert not book.is_proven(c)
    book.add(c, b, 1, X)
    assert not book.make_room(1, X)[0].proven


def test_followers_are_what_is_held_next(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    assert book.followers(BlockHash(b"a")) == _keys("b")
    assert book.followers(BlockHash(b"q")) == []


def test_what_is_kept_is_not_evicted_nor_is_what_is_before_it(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    a, b, c = _keys("abc")
    assert book.keep([b, b, *_keys("z")]) == 1
    assert book.keep([b]) == 0
    assert book.protected() == {a, b}
    assert [victim.key for victim in book.make_room(3, X)] == [c]
    book.check_integrity()
    assert book.unkeep([b, c]) == 1
    assert [victim.key for victim in book.make_room(3, X)] == [b, a]


def test_a_kept_block_that_is_removed_is_as_any_other_when_it_returns(
    policy: Watched, clock: VirtualClock
) -> None:
    book = _book(policy, clock)
    b, c = _keys("bc")
    book.keep([c])
    book.remove(c)
    assert book.protected() == set()
    book.add(c, b, 1, X)
    assert not book.is_kept(c)
    assert [victim.key for victim in book.make_room(1, X)] == [c]


def test_the_leading_blocks_end_at_the_first_gap(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    assert book.leading(_keys("abc")) == 3
    assert book.leading(_keys("axb")) == 1
    assert book.leading(_keys("xab")) == 0
    assert book.leading([]) == 0


def test_a_block_is_added_where_it_fits(policy: Watched, clock: VirtualClock) -> None:
    """The tier has room for ten bytes, of which X may have six."""
    book = TierIndex(10, LruPolicy, clock, EvictionRules(tenant_quota_bytes={X: 6}))
    a, b, c, d, e = _keys("abcde")
    assert book.add(a, None, 4, X) is Added.HELD
    assert book.add(a, None, 4, X) is Added.PRESENT
    assert book.add(b, None, 3, X) is Added.NO_ROOM, "over the quota"
    assert book.add(b, None, 2, X) is Added.HELD, "the quota exactly"
    assert book.add(c, None, 3, Y) is Added.HELD
    assert book.add(d, None, 2, Y) is Added.NO_ROOM, "over the capacity"
    assert book.add(e, None, 1, Y) is Added.HELD, "the capacity exactly"
    assert (book.used_bytes, book.tenant_bytes(X), book.tenant_bytes(Y)) == (10, 6, 4)
    book.check_integrity()


def test_nothing_goes_for_what_is_over_the_quota(policy: Watched, clock: VirtualClock) -> None:
    book = TierIndex(10, LruPolicy, clock, EvictionRules(tenant_quota_bytes={X: 2}))
    a, b = _keys("ab")
    for key in (a, b):
        book.add(key, None, 1, X)
    assert book.make_room(3, X) == []
    assert [victim.key for victim in book.make_room(2, X)] == [a, b], "the quota exactly"


def test_nothing_is_searched_where_there_is_room_enough(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock, EvictionRules(tenant_quota_bytes={X: 4}))
    book.remove(_keys("c")[0])
    assert book.make_room(1, X) == []
    assert policy.asked == 0


def test_only_a_pin_can_be_ended(policy: Watched, clock: VirtualClock) -> None:
    book = _book(policy, clock)
    book.unpin(_keys("cx"))
    node = book.find(_keys("c")[0])
    assert node is not None
    assert node.pins == 0


class Noted(LruPolicy):
    """Notes which removals were evictions."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[tuple[BlockHash, bool]] = []

    def remove(self, key: BlockHash, *, evicted: bool) -> None:
        self.removed.append((key, evicted))
        super().remove(key, evicted=evicted)


def test_a_policy_learns_whether_a_block_was_evicted(clock: VirtualClock) -> None:
    policy = Noted()
    book = TierIndex(2, lambda: policy, clock)
    a, b = _keys("ab")
    for key in (a, b):
        book.add(key, None, 1, X)
    book.make_room(1, X)
    book.remove(b)
    assert policy.removed == [(a, True), (b, False)]


def test_a_search_is_repeated_when_a_tenant_did_not_give(clock: VirtualClock) -> None:
    """A tenant's blocks below those of another are taken once that tenant is over its hot set."""
    book = TierIndex(3, LruPolicy, clock, EvictionRules(tenant_hotset_bytes=1))
    a, b, c = _keys("abc")
    book.add(a, None, 1, X)
    book.add(b, a, 1, Y)
    assert book.make_room(3, X) == [], "the block of Y follows that of X, and Y does not give"
    book.add(c, None, 1, Y)
    assert [victim.key for victim in book.make_room(3, X)] == [b, a]


def test_evictions_are_counted_by_reason_and_age(policy: Watched, clock: VirtualClock) -> None:
    clock.advance(100)
    book = _book(policy, clock, EvictionRules(tenant_quota_bytes={X: 3}))
    clock.advance(5)
    book.make_room(1, X)
    book.make_room(2, Y)
    assert book.evictions == {EvictReason.QUOTA: 1, EvictReason.ROOM: 1}
    assert book.eviction_ages.sum_seconds == 10
    assert book.eviction_ages.counts[1] == 2, "1 to 10 s"


def test_a_tenant_that_holds_nothing_is_forgotten(clock: VirtualClock) -> None:
    """An issuer of tokens may name any number of tenants, and each search goes through all that are known."""
    policies: WeakSet[LruPolicy] = WeakSet()

    def make() -> LruPolicy:
        policies.add(policy := LruPolicy())
        return policy

    book = TierIndex(2, make, clock)
    for number in range(100):
        book.make_room(1, tenant := TenantId(f"tenant-{number}"))
        book.add(BlockHash(b"%d" % number), None, 1, tenant)
        book.check_integrity()
    assert len(policies) == 2
    book.remove(BlockHash(b"99"))
    assert len(policies) == 1
    assert book.tenant_bytes(TenantId("tenant-99")) == 0


# -- blocks that an earlier process has left


def _found(rules: EvictionRules | None = None) -> tuple[TierIndex, VirtualClock]:
    """Four blocks of nobody fill it."""
    clock = VirtualClock()
    book = TierIndex(4, LruPolicy, clock, rules)
    for key in _keys("abcd"):
        book.add(key, None, 1, NOBODY)
    return book, clock


def test_who_adopts_a_block_is_charged_and_it_follows_its_parent() -> None:
    book, _ = _found()
    a, b = _keys("ab")
    book.adopt(a, None, X)
    book.adopt(b, a, X)
    assert (book.tenant_bytes(X), book.tenant_bytes(NOBODY), book.used_bytes) == (2, 2, 4)
    assert book.followers(a) == [b]
    book.adopt(b, None, Y)
    assert book.tenant_bytes(X) == 2, "it is no longer anybody's"
    book.adopt(BlockHash(b"z"), None, X)
    assert len(book) == 4
    book.check_integrity()


def test_a_block_that_is_adopted_was_not_evicted(clock: VirtualClock) -> None:
    policies = [Noted(), Noted()]
    left = iter(policies)
    book = TierIndex(4, lambda: next(left), clock)
    (a,) = _keys("a")
    book.add(a, None, 1, NOBODY)
    book.adopt(a, None, X)
    assert [policy.removed for policy in policies] == [[(a, False)], []]


def test_a_block_over_the_quota_or_in_use_stays_nobodys() -> None:
    book, _ = _found(EvictionRules(tenant_quota_bytes={X: 1}))
    a, b, c, _ = _keys("abcd")
    book.adopt(a, None, X)
    book.adopt(b, a, X)
    book.pin([c])
    book.adopt(c, b, Y)
    assert (book.tenant_bytes(X), book.tenant_bytes(Y), book.tenant_bytes(NOBODY)) == (1, 0, 3)
    book.check_integrity()


def test_nobody_has_a_hot_set() -> None:
    book, _ = _found(EvictionRules(tenant_hotset_bytes=4))
    assert [victim.key for victim in book.make_room(2, X)] == _keys("ab"), "in the order they were found"


def test_a_tenant_within_its_hot_set_gives_to_itself_only(clock: VirtualClock) -> None:
    index = TierIndex(4, LruPolicy, clock, EvictionRules(tenant_hotset_bytes=2))
    for key, tenant in (("a", X), ("b", X), ("c", Y), ("d", Y)):
        clock.advance(1)
        index.add(_keys(key)[0], None, 1, tenant)
    assert index.make_room(1, TenantId("z")) == []
    assert [victim.key for victim in index.make_room(1, Y)] == _keys("c")
