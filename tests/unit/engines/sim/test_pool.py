"""Blocks are held, idle or blank; the cache finds full ones by content."""

import random

import pytest

from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.engines.sim.pool import BlockPool


def h(name: str) -> BlockHash:
    return BlockHash(name.encode())


def test_released_content_is_found_until_it_is_evicted() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, h("a"))
    pool.publish(second, h("b"))
    pool.release([first, second])
    assert pool.match([h("a"), h("b")]) == [first, second]
    assert pool.used_blocks == 0
    pool.allocate(1)
    assert pool.match([h("a"), h("b")]) == [first], "the child goes before its parent"


def test_a_held_block_is_never_evicted() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.publish(block, h("a"))
    pool.hold([block])
    pool.release([block])
    assert pool.available_blocks == 1
    pool.allocate(1)
    assert pool.match([h("a")]) == [block]


def test_matching_stops_at_the_first_gap() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], h("a"))
    pool.publish(blocks[1], h("c"))
    assert pool.match([h("a"), h("b"), h("c")]) == [blocks[0]]


def test_idle_blocks_count_as_available_only_until_held() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.publish(block, h("a"))
    assert pool.idle_among([block]) == 0
    pool.release([block])
    assert pool.idle_among([block]) == 1


def test_events_say_what_came_and_went() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.publish(block, h("a"))
    assert pool.take_events().stored == (h("a"),)
    pool.release([block])
    (block,) = pool.allocate(1)
    pool.publish(block, h("b"))
    events = pool.take_events()
    assert (events.removed, events.stored) == ((h("a"),), (h("b"),))
    assert not pool.has_events()


def test_the_content_of_an_adapter_is_forgotten_and_nothing_else() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, (name, adapter) in zip(blocks, [("a", "red"), ("b", "red"), ("c", "blue")], strict=True):
        pool.publish(block, h(name), AdapterDigest(adapter))
    pool.release(blocks[1:])
    pool.take_events()
    pool.forget(AdapterDigest("red"))
    pool.check_integrity()
    assert [name for name in "abc" if pool.match([h(name)])] == ["c"]
    assert set(pool.take_events().removed) == {h("a"), h("b")}
    assert pool.available_blocks == 2, "one is held"
    pool.release(blocks[:1])
    pool.check_integrity()


def test_of_two_blocks_with_one_content_the_second_is_not_kept() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, h("a"))
    pool.publish(second, h("a"))
    pool.release([second])
    pool.check_integrity()
    assert pool.match([h("a")]) == [first]


def test_releasing_twice_is_a_bug() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


def test_any_history_keeps_the_pool_whole() -> None:
    rng, pool = random.Random(3), BlockPool(12)
    held: list[list[int]] = []
    told: set[bytes] = set()
    for turn in range(2000):
        if rng.random() < 0.5 and pool.available_blocks >= 3:
            cached = pool.match([h(f"{rng.randrange(9)}")])
            if pool.available_blocks - pool.idle_among(cached) < 2:
                continue
            pool.hold(cached)
            new = pool.allocate(2)
            for block in new:
                number = rng.randrange(9)
                pool.publish(block, h(f"{number}"), AdapterDigest(f"{number % 3}"))
            held.append([*cached, *new])
        elif held and rng.random() < 0.9:
            pool.release(held.pop(rng.randrange(len(held))))
        else:
            pool.forget(AdapterDigest(f"{rng.randrange(1, 3)}"))
        if turn % 10 == 0:
            events = pool.take_events()
            told = (told - set(events.removed)) | set(events.stored)
            assert told == {h(f"{n}") for n in range(9) if pool.match([h(f"{n}")])}
        pool.check_integrity()
