"""The beginnings of prompts that were found cached most often lately."""

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.router.prefix.hot import HALF_SECONDS, MOST_HALF, SHOWN, HotPrefix, HotPrefixes

RED, BLUE = TenantId("red"), TenantId("blue")
A, B = BlockHash(b"a"), BlockHash(b"b")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def _uses(hot: HotPrefixes) -> dict[BlockHash, int]:
    return {one.block_hash: one.uses for one in hot.hottest()}


def test_the_most_used_comes_first_and_says_whose_it_was_last(clock: VirtualClock) -> None:
    hot = HotPrefixes(clock)
    hot.used(B, RED, 2, 32)
    for tenant in (RED, BLUE):
        clock.advance(1)
        hot.used(A, tenant, 3, 48)
    assert hot.hottest() == [HotPrefix(A, BLUE, 3, 48, 2, 2.0), HotPrefix(B, RED, 2, 32, 1, 0.0)]


def test_counts_are_of_the_last_minutes(clock: VirtualClock) -> None:
    hot = HotPrefixes(clock)
    hot.used(A, RED, 1, 16)
    clock.advance(HALF_SECONDS)
    hot.used(A, RED, 1, 16)
    hot.used(B, RED, 1, 16)
    assert _uses(hot) == {A: 2, B: 1}
    clock.advance(HALF_SECONDS)
    assert _uses(hot) == {A: 1, B: 1}
    clock.advance(HALF_SECONDS)
    assert _uses(hot) == {}


def test_after_a_long_pause_nothing_is_hot(clock: VirtualClock) -> None:
    hot = HotPrefixes(clock)
    hot.used(A, RED, 1, 16)
    clock.advance(2 * HALF_SECONDS)
    assert _uses(hot) == {}


def test_many_that_are_used_once_push_out_none_that_is_used_often(clock: VirtualClock) -> None:
    hot = HotPrefixes(clock)
    for number in range(5 * MOST_HALF):
        hot.used(BlockHash(number.to_bytes(4)), RED, 1, 16)
        if number % 10 == 0:
            hot.used(A, RED, 4, 64)
    found = hot.hottest()
    assert len(found) == SHOWN
    assert found[0].block_hash == A
    assert found[0].uses >= MOST_HALF // 10
    assert len(hot._young) + len(hot._old) <= 2 * MOST_HALF
