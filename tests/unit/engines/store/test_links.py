"""One question for each shard of a prompt, and their answers as one."""

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.ids import BlockHash
from llmserve.engines.store.link import StoreAnswer, StoreQuery
from llmserve.engines.store.links import (
    LocatedBlock,
    PromptAnswer,
    ShardAnswer,
    StoreLease,
    merged,
    split,
)
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.sharding import Shard, Sharding
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

SHARDS = (Shard("a", 0, 2), Shard("b", 2, 5), Shard("a", 5, 6))


def _query(have: int = 0, blocks: int = 6, *, load: bool = True) -> StoreQuery:
    hashes = [BlockHash(bytes([number]) * 32) for number in range(blocks)]
    return StoreQuery("r", "red", hashes, have, load, 0.5, 2.0)


def _hashes_of(ask: StoreQuery) -> list[BlockHash]:
    return list(map(BlockHash, ask.block_hashes))


def _answer(
    shard: Shard, loads: Sequence[int] | None, stores: Sequence[int] = (), have: int = 0, until: float = inf
) -> ShardAnswer:
    """loads, stores: indexes within the shard. None: the manager is away."""
    ask = _query(have, shard.stop - shard.start)
    if loads is None:
        return ShardAnswer(shard, StoreAnswer(ask))
    prepared = pb.PreparePromptResponse(
        lease_id=f"lease-{shard.start}" if loads else "",
        loads=[pb.StoreBlock(index=at, slots=[pb.StoreSlot(offset=at, length_bytes=7)]) for at in loads],
        stores=[pb.StoreBlock(index=at, slots=[pb.StoreSlot(generation=9, checksum=8)]) for at in stores],
    )
    return ShardAnswer(shard, StoreAnswer(ask, f"arena-{shard.manager}", prepared, until))


def _merge(*loads: Sequence[int] | None) -> tuple[PromptAnswer, list[StoreLease]]:
    return merged(_query(), [_answer(shard, held) for shard, held in zip(SHARDS, loads, strict=True)])


def test_a_prompt_is_one_question_for_each_shard() -> None:
    sharding, ask = Sharding({"a": 1.0, "b": 1.0, "c": 1.0}, run_blocks=2), _query(have=3)
    questions = split(sharding, ask)
    assert [shard for shard, _ in questions] == sharding.shards(_hashes_of(ask))
    for shard, question in questions:
        assert list(question.block_hashes) == ask.block_hashes[shard.start : shard.stop]
        assert question.have_blocks == len([at for at in range(shard.start, shard.stop) if at < 3])
        assert (question.request_id, question.load, question.timeout_seconds) == ("r", True, 2.0)


@pytest.mark.parametrize(("have", "starts"), [(0, [0, 2, 4]), (1, [0, 2, 4]), (2, [2, 4]), (5, [4])])
def test_what_is_only_to_be_stored_is_asked_from_there_on(have: int, starts: list[int]) -> None:
    one = Sharding({"a": 1.0}, run_blocks=2)
    assert len(split(one, _query(have, load=False))) == 1
    many = Sharding(dict.fromkeys("abcdefgh", 1.0), run_blocks=2)
    ask = next(
        query
        for number in range(200)
        for query in [StoreQuery("r", "red", _hashes(number), have, False, 0.5, 2.0)]
        if len(many.shards(_hashes_of(query))) == 3
    )
    assert [shard.start for shard, _ in split(many, ask)] == starts


def _hashes(number: int) -> list[BlockHash]:
    return [BlockHash(bytes([number, at]) * 16) for at in range(6)]


@pytest.mark.parametrize(
    ("loads", "end", "unused"),
    [
        (([0, 1], [0, 1, 2], [0]), 6, []),
        (([0, 1], [0, 2], [0]), 3, [5]),
        (([0, 1], [1, 2], [0]), 2, [2, 5]),
        (([1], [0, 1, 2], [0]), 0, [0, 2, 5]),
        (([0, 1], None, [0]), 2, [5]),
        ((None, [0, 1, 2], None), 0, [2]),
        (([], [], []), 0, []),
    ],
)
def test_loads_end_at_the_first_gap(
    loads: tuple[Sequence[int] | None, ...], end: int, unused: list[int]
) -> None:
    answer, leases = _merge(*loads)
    assert sorted(answer.loads) == list(range(end))
    assert [lease.lease_id for lease in leases] == [f"lease-{start}" for start in unused]
    used = [shard.start for shard, held in zip(SHARDS, loads, strict=True) if held and shard.start < end]
    assert [lease.lease_id for lease in answer.leases] == [f"lease-{start}" for start in used]


def test_blocks_of_the_device_are_no_gap() -> None:
    first, second, third = SHARDS
    answers = [_answer(first, [], have=2), _answer(second, [1, 2], have=1), _answer(third, [0])]
    answer, unused = merged(_query(3), answers)
    assert (sorted(answer.loads), unused) == ([3, 4, 5], [])
    answers[0] = _answer(first, None, have=2)
    assert sorted(merged(_query(3), answers)[0].loads) == [3, 4, 5], "nothing was wanted of who is away"


def test_what_is_located_where() -> None:
    first, second, third = SHARDS
    answers = [
        _answer(first, [0, 1], until=9.0),
        _answer(second, [0], [1, 2], until=7.0),
        _answer(third, None),
    ]
    answer, _ = merged(ask := _query(), answers)
    assert answer.ask is ask
    assert answer.arenas == {"a": "", "b": "arena-b"}, "one that was restarted meanwhile is away"
    assert answer.loads[1] == LocatedBlock("a", "arena-a", (Slot(1, 7, 0, 0),))
    assert answer.loads[2] == LocatedBlock("b", "arena-b", (Slot(0, 7, 0, 0),))
    assert answer.stores == dict.fromkeys((3, 4), LocatedBlock("b", "arena-b", (Slot(0, 0, 9, 8),)))
    assert answer.leases == [StoreLease("a", "arena-a", "lease-0"), StoreLease("b", "arena-b", "lease-2")]
    assert answer.usable_until == 7.0


@given(st.integers(1, 100), st.integers(1, 30), st.sets(st.integers(0, 99)), st.sets(st.sampled_from("abc")))
@settings(deadline=None, database=None)
def test_what_is_loaded_is_a_held_prefix(blocks: int, run: int, lost: set[int], away: set[str]) -> None:
    shards = Sharding(dict.fromkeys("abc", 1.0), run).shards(_hashes_of(_query(0, blocks)))
    missing = lost | {at for one in shards if one.manager in away for at in range(one.start, one.stop)}
    answers = [
        _answer(one, None)
        if one.manager in away
        else _answer(one, [at - one.start for at in range(one.start, one.stop) if at not in lost])
        for one in shards
    ]
    answer, _ = merged(_query(0, blocks), answers)
    assert sorted(answer.loads) == list(range(min([*missing, blocks])))
