"""What every eviction policy promises, alone and in a tier's book. Pure: no clock but a virtual one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.eviction import (
    Added,
    ArcPolicy,
    EvictionRules,
    MakePolicy,
    S3FifoPolicy,
    TierIndex,
    Victim,
)
from tests.support.lru_policy import LruPolicy

POLICIES: dict[str, MakePolicy] = {"lru": LruPolicy, "s3-fifo": S3FifoPolicy, "arc": ArcPolicy}
X, Y = TenantId("x"), TenantId("y")


@pytest.fixture(params=POLICIES)
def make_policy(request: pytest.FixtureRequest) -> MakePolicy:
    return POLICIES[request.param]


def _key(name: object) -> BlockHash:
    return BlockHash(str(name).encode())


# -- a policy alone


def test_candidates_are_what_is_held_each_once(make_policy: MakePolicy) -> None:
    policy = make_policy()
    for number in range(20):
        policy.add(_key(number), 1)
    for number in (3, 3, 3, 7, 0):
        policy.touch(_key(number))
    policy.remove(_key(5), evicted=True)
    policy.remove(_key(6), evicted=False)
    candidates = list(policy.candidates())
    assert sorted(candidates) == sorted(_key(number) for number in range(20) if number not in (5, 6))
    assert len(policy) == 18


def test_what_was_never_used_again_goes_before_what_was(make_policy: MakePolicy) -> None:
    policy = make_policy()
    for name in "abcd":
        policy.add(_key(name), 1)
    policy.touch(_key("a"))
    assert next(policy.candidates()) == _key("b")


def test_an_empty_policy_has_no_candidates(make_policy: MakePolicy) -> None:
    policy = make_policy()
    assert list(policy.candidates()) == []
    policy.add(_key("a"), 1)
    policy.remove(_key("a"), evicted=True)
    assert list(policy.candidates()) == []
    assert len(policy) == 0


_STEP = st.tuples(
    st.sampled_from(["add", "touch", "evict", "vanish", "ask"]), st.integers(0, 12), st.integers(1, 5)
)


@given(st.sampled_from(sorted(POLICIES)), st.lists(_STEP, max_size=60))
@settings(deadline=None, database=None)
def test_a_policy_holds_what_it_was_told(name: str, steps: Sequence[tuple[str, int, int]]) -> None:
    policy, held = POLICIES[name](), set[BlockHash]()
    for what, number, size_bytes in steps:
        key = _key(number)
        if what == "add" and key not in held:
            policy.add(key, size_bytes)
            held.add(key)
        elif what == "touch" and key in held:
            policy.touch(key)
        elif what in ("evict", "vanish") and key in held:
            policy.remove(key, evicted=what == "evict")
            held.discard(key)
        elif what == "ask":
            candidates = list(policy.candidates())
            assert len(candidates) == len(held)
            assert set(candidates) == held
        policy.check_integrity()
        assert len(policy) == len(held)


# -- in a tier


@dataclass
class Desk:
    """Stands for the manager of a tier: makes room, then adds."""

    book: TierIndex
    clock: VirtualClock
    gone: list[Victim] = field(default_factory=list)

    def store(self, prompt: str, tenant: TenantId = X, size_bytes: int = 1) -> list[Added]:
        """A prompt of one letter a block; the hash of a block names its whole prefix."""
        keys = prefix(prompt)
        pinned = self.book.pin(keys)
        self.gone += self.book.make_room(size_bytes * (len(keys) - len(pinned)), tenant)
        self.book.unpin(pinned)
        parents: list[BlockHash | None] = [None, *keys]
        return [
            self.book.add(key, parent, size_bytes, tenant) for key, parent in zip(keys, parents, strict=False)
        ]

    def names(self) -> list[str]:
        return [victim.key.decode() for victim in self.gone]

    def held(self, *prompts: str) -> bool:
        return all(_key(prompt) in self.book for prompt in prompts)


def prefix(prompt: str) -> list[BlockHash]:
    return [_key(prompt[: end + 1]) for end in range(len(prompt))]


def _desk(make_policy: MakePolicy, capacity_bytes: int, rules: EvictionRules | None = None) -> Desk:
    clock = VirtualClock(100.0)
    return Desk(TierIndex(capacity_bytes, make_policy, clock, rules), clock)


def test_room_is_bounded(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 3)
    for name in "abcdef":
        assert desk.store(name) == [Added.HELD]
        assert desk.book.used_bytes <= 3
    assert len(desk.book) == 3
    assert len(desk.gone) == 3
    assert desk.store("f") == [Added.PRESENT]


def test_without_room_made_nothing_is_added(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 1)
    desk.store("a")
    assert desk.book.add(_key("b"), None, 1, X) is Added.NO_ROOM
    assert not desk.held("b")


def test_nothing_goes_for_what_can_never_fit(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 3)
    desk.store("abc")
    assert desk.book.make_room(4, X) == []
    assert len(desk.book) == 3


def test_the_end_of_a_prompt_goes_before_its_begin(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 6)
    desk.store("abcd")
    desk.store("uvwxyz")
    assert desk.names() == ["abcd", "abc", "ab", "a"]


def test_what_prompts_share_goes_after_both(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 5)
    desk.store("abc")
    desk.store("abd")
    desk.store("vwxyz")
    assert desk.names().index("ab") > max(desk.names().index("abc"), desk.names().index("abd"))
    assert desk.names()[-1] == "a"


def test_a_prefix_that_is_used_stays(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 8)
    desk.store("abc")
    for number in range(1, 40):
        desk.book.touch(prefix("abc"))
        desk.store(chr(1000 + number) * 2)
        desk.clock.advance(1)
    assert desk.held("a", "ab", "abc")


def test_a_parent_that_returns_keeps_its_place(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 4)
    desk.store("abc")
    desk.book.remove(_key("ab"))  # corrupt
    assert desk.book.leading(prefix("abc")) == 1
    desk.store("ab")
    desk.gone += desk.book.make_room(4, X)
    assert desk.names() == ["abc", "ab", "a"]
    assert len(desk.book) == 0


def test_a_block_without_its_parent_still_holds_its_parents_parent(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 3)
    desk.store("abc")
    desk.book.remove(_key("ab"))
    desk.gone += desk.book.make_room(2, X)
    assert desk.names() == ["abc"]
    assert desk.held("a")


def test_pinned_blocks_and_those_before_them_stay(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 4)
    desk.store("abcd")
    assert desk.book.pin(prefix("abx")) == prefix("ab")
    assert desk.store("xyz") == [Added.HELD, Added.HELD, Added.NO_ROOM]
    assert desk.held("a", "ab")
    desk.book.unpin(prefix("ab"))
    desk.store("xyzw")
    assert desk.names() == ["abcd", "abc", "ab", "a"]


def test_pins_are_counted(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 1)
    desk.store("a")
    for _ in range(2):
        desk.book.pin([_key("a")])
    desk.book.unpin([_key("a")])
    assert desk.store("b") == [Added.NO_ROOM]
    desk.book.unpin([_key("a")])
    assert desk.store("b") == [Added.HELD]


def test_pins_end_with_their_block(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 1)
    desk.store("a")
    desk.book.pin([_key("a")])
    desk.book.remove(_key("a"))
    desk.store("a")
    desk.book.unpin([_key("a")])  # of the block that is gone
    desk.book.unpin([_key("a")])
    assert desk.store("b") == [Added.HELD]


def test_what_is_added_beside_pinned_blocks_may_go(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 2)
    desk.store("a")
    desk.book.pin([_key("a")])
    assert desk.book.make_room(2, X) == []  # nothing else is there yet
    desk.store("b")
    assert desk.store("c") == [Added.HELD]
    assert desk.names() == ["b"]


def test_hot_blocks_stay_until_they_are_cool(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 2, EvictionRules(hot_keep_seconds=10))
    desk.store("ab")
    desk.clock.advance(9.9)
    assert desk.store("x") == [Added.NO_ROOM]
    desk.clock.advance(0.1)
    assert desk.store("x") == [Added.HELD]
    assert desk.names() == ["ab"]


def test_use_keeps_blocks_hot(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 2, EvictionRules(hot_keep_seconds=10))
    desk.store("ab")
    desk.clock.advance(8)
    assert desk.store("x") == [Added.NO_ROOM]  # what it learned then is not true for long
    desk.book.touch(prefix("ab"))
    desk.clock.advance(8)
    assert desk.store("x") == [Added.NO_ROOM]
    desk.clock.advance(2)
    assert desk.store("x") == [Added.HELD]


def test_a_removed_child_frees_its_parent_at_once(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 2)
    desk.store("ab")
    desk.book.pin([_key("ab")])
    assert desk.store("x") == [Added.NO_ROOM]
    desk.book.remove(_key("ab"))
    assert desk.store("xy") == [Added.HELD, Added.HELD]


def test_a_tenant_keeps_its_hot_set(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 10, EvictionRules(tenant_hotset_bytes=3))
    desk.store("abcde", X)
    for number in range(50):
        desk.clock.advance(1)
        desk.store(chr(1000 + number) * 2, Y)
    assert desk.book.tenant_bytes(X) == 3
    assert desk.held("a", "ab", "abc")
    assert desk.book.tenant_bytes(Y) == 7 or desk.book.tenant_bytes(Y) == 6


def test_a_tenant_replaces_its_own_hot_set(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 4, EvictionRules(tenant_hotset_bytes=2))
    desk.store("ab", X)
    desk.store("cd", Y)
    assert desk.store("ef", X) == [Added.HELD, Added.HELD]
    assert desk.names() == ["ab", "a"]


def test_a_tenant_stays_within_its_quota(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 10, EvictionRules(tenant_quota_bytes={X: 3}))
    desk.store("uvwxyz", Y)
    for name in ("ab", "cd", "efg"):
        desk.clock.advance(1)
        desk.store(name, X)
        assert desk.book.tenant_bytes(X) <= 3
    assert desk.book.tenant_bytes(Y) == 6  # its neighbour gave nothing
    assert desk.store("hijk", X) == [Added.NO_ROOM] * 4
    assert desk.held("e", "ef", "efg")


def test_the_tenant_that_used_its_blocks_least_recently_gives(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 4)
    desk.store("ab", X)
    desk.clock.advance(1)
    desk.store("cd", Y)
    desk.clock.advance(1)
    desk.book.touch(prefix("ab"))
    desk.store("e", Y)
    assert desk.names() == ["cd"]


def test_what_another_tenant_continued_stays_before_it(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 3, EvictionRules(tenant_hotset_bytes=1))
    desk.store("ab", X)
    desk.store("abc", Y)
    desk.clock.advance(1)
    assert desk.store("x", X) == [Added.NO_ROOM]  # the block at the end is Y's hot set
    assert desk.held("a", "ab", "abc")


def test_what_another_tenant_continued_goes_after_it(make_policy: MakePolicy) -> None:
    desk = _desk(make_policy, 4, EvictionRules(tenant_hotset_bytes=1))
    desk.store("a", X)
    desk.store("ab", Y)
    assert desk.book.make_room(3, X) == []
    desk.clock.advance(1)
    desk.store("z", Y)  # now Y holds more than its hot set
    desk.gone += desk.book.make_room(3, X)
    assert desk.names() == ["ab", "a"]


_PROMPTS = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=30)
_ACTS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "touch", "pin", "unpin", "remove", "wait"]),
        st.text("abc", min_size=1, max_size=6),
        st.sampled_from((X, Y)),
        st.integers(1, 3),
    ),
    max_size=50,
)
_RULES = st.sampled_from(
    (
        EvictionRules(),
        EvictionRules(hot_keep_seconds=3),
        EvictionRules(tenant_hotset_bytes=4),
        EvictionRules(tenant_quota_bytes={X: 6}),
        EvictionRules(hot_keep_seconds=2, tenant_hotset_bytes=3, tenant_quota_bytes={X: 8, Y: 5}),
    )
)


class Checked(Desk):
    """Holds every victim against what must be true, with books of its own."""

    def __init__(self, make_policy: MakePolicy, rules: EvictionRules) -> None:
        clock = VirtualClock()
        super().__init__(TierIndex(12, make_policy, clock, rules), clock)
        self.rules = rules
        self.used_at: dict[str, float] = {}
        self.pins: dict[str, int] = {}
        self.owner: dict[str, tuple[TenantId, int]] = {}

    def act(self, what: str, prompt: str, tenant: TenantId, size_bytes: int) -> None:
        match what:
            case "store":
                self._store(prompt, tenant, size_bytes)
            case "touch":
                self.book.touch(prefix(prompt))
                self.used_at.update(dict.fromkeys(self._held_of(prompt), self.clock.now()))
            case "pin":
                for key in self.book.pin(prefix(prompt)):
                    self.pins[key.decode()] = self.pins.get(key.decode(), 0) + 1
            case "unpin":
                pinned = [key for key in prefix(prompt) if self.pins.get(key.decode())]
                self.book.unpin(pinned)
                self.pins.update({key.decode(): self.pins[key.decode()] - 1 for key in pinned})
            case "remove":
                self.book.remove(_key(prompt))
                self._forget(prompt)
            case _:
                self.clock.advance(size_bytes)

    def check(self) -> None:
        self.book.check_integrity()
        assert {key.decode() for key in map(_key, self.owner)} == set(self.owner)
        assert len(self.book) == len(self.owner)
        assert self.book.used_bytes == sum(size for _, size in self.owner.values())

    def _store(self, prompt: str, tenant: TenantId, size_bytes: int) -> None:
        before = len(self.gone)
        need_bytes = size_bytes * sum(key not in self.book for key in prefix(prompt))
        added = self.store(prompt, tenant, size_bytes)
        for victim in self.gone[before:]:
            self._check_victim(victim, tenant)
        for key, outcome in zip(prefix(prompt), added, strict=True):
            if outcome is Added.HELD:
                self.owner[key.decode()] = tenant, size_bytes
                self.used_at[key.decode()] = self.clock.now()

        if Added.NO_ROOM in added and need_bytes <= 12 and not self.rules.tenant_quota_bytes:
            self._check_nothing_could_go(prompt, tenant)

    def _check_nothing_could_go(self, prompt: str, taker: TenantId) -> None:
        """A search that ends too early would refuse."""
        for name, (tenant, _) in self.owner.items():
            follows = any(other.startswith(name) and other != name for other in self.owner)
            hot = self.clock.now() - self.used_at[name] < self.rules.hot_keep_seconds
            held = self.book.tenant_bytes(tenant) <= self.rules.tenant_hotset_bytes and tenant != taker
            stays = follows or hot or held or self.pins.get(name) or prompt.startswith(name)
            assert stays, name

    def _check_victim(self, victim: Victim, taker: TenantId) -> None:
        name = victim.key.decode()
        assert not any(other.startswith(name) and other != name for other in self.owner), (
            "before its children"
        )
        assert not self.pins.get(name), "pinned"
        assert self.clock.now() - self.used_at[name] >= self.rules.hot_keep_seconds, "hot"
        assert self.owner[name] == (victim.tenant, victim.size_bytes)
        held = sum(size for tenant, size in self.owner.values() if tenant == victim.tenant)
        assert victim.tenant == taker or held > self.rules.tenant_hotset_bytes, "hot set"
        self._forget(name)

    def _forget(self, name: str) -> None:
        for books in (self.owner, self.used_at, self.pins):
            books.pop(name, None)

    def _held_of(self, prompt: str) -> list[str]:
        return [key.decode() for key in prefix(prompt) if key in self.book]


@given(st.sampled_from(sorted(POLICIES)), _RULES, _ACTS)
@settings(deadline=None, database=None, max_examples=100)
def test_the_rules_hold_whatever_happens(
    name: str, rules: EvictionRules, acts: Sequence[tuple[str, str, TenantId, int]]
) -> None:
    desk = Checked(POLICIES[name], rules)
    for act in acts:
        desk.act(*act)
        desk.check()


@given(st.sampled_from(sorted(POLICIES)), _PROMPTS)
@settings(deadline=None, database=None)
def test_without_rules_there_is_always_room(name: str, prompts: Sequence[str]) -> None:
    """A search that ends too early would refuse."""
    desk = _desk(POLICIES[name], 6)
    for prompt in prompts:
        desk.book.touch(prefix(prompt))
        assert Added.NO_ROOM not in desk.store(prompt)
