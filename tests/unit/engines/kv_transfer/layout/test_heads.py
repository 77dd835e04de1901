from collections import Counter
from dataclasses import replace

import pytest

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer.layout.heads import HeadShard, Source, sources

SIZES = (1, 2, 3, 4, 6, 8, 16)


def shards(kv_heads: int, tensor_parallel: int) -> list[HeadShard]:
    return [HeadShard(kv_heads, tensor_parallel, rank) for rank in range(tensor_parallel)]


@pytest.mark.parametrize(
    ("kv_heads", "size", "heads"),
    [
        (4, 1, ["0123"]),
        (4, 2, ["01", "23"]),
        (2, 4, ["0", "0", "1", "1"]),
        (1, 3, ["0", "0", "0"]),
    ],
)
def test_heads_are_cut_as_vllm_cuts_them(kv_heads: int, size: int, heads: list[str]) -> None:
    assert ["".join(map(str, shard.heads)) for shard in shards(kv_heads, size)] == heads


@pytest.mark.parametrize("wrong", [(3, 2, 0), (4, 6, 0), (0, 1, 0), (1, 0, 0), (4, 2, 2), (4, 2, -1)])
def test_what_cannot_be_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(TransferError):
        HeadShard(*wrong)


def test_several_peers_a_range_of_each() -> None:
    assert sources(HeadShard(4, 1, 0), 2) == (Source(0, range(2), 1), Source(1, range(2, 4), 1))
    assert sources(HeadShard(6, 2, 1), 3) == (Source(1, range(3, 4), 2), Source(2, range(4, 6), 1))


def test_one_peer_a_part_of_its_heads() -> None:
    assert sources(HeadShard(4, 2, 1), 1) == (Source(0, range(2, 4), 2),)


def test_a_replica_that_nobody_reads_is_released_by_one() -> None:
    assert sources(HeadShard(1, 1, 0), 3) == (
        Source(0, range(1), 1),
        Source(1, range(0), 1),
        Source(2, range(0), 1),
    )


def test_replicas_share_out_the_replicas_of_the_peer() -> None:
    read = [[source.rank for source in sources(shard, 2) if source.heads] for shard in shards(1, 4)]
    assert read == [[0], [1], [0], [1]]


def test_equal_sizes_pair_rank_by_rank() -> None:
    for kv_heads, size in ((4, 4), (4, 2), (2, 8)):
        assert [sources(shard, size) for shard in shards(kv_heads, size)] == [
            (Source(shard.rank, shard.heads, 1),) for shard in shards(kv_heads, size)
        ]


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 4, 6, 8])
def test_every_head_comes_once_and_every_lease_is_released(kv_heads: int) -> None:
    sizes = [size for size in SIZES if kv_heads % size == 0 or size % kv_heads == 0]
    for here in sizes:
        for there in sizes:
            owners, met = shards(kv_heads, there), Counter[int]()
            found = [sources(shard, there) for shard in shards(kv_heads, here)]
            for shard, wanted in zip(shards(kv_heads, here), found, strict=True):
                assert sorted(head for source in wanted for head in source.heads) == list(shard.heads)
                assert all(set(source.heads) <= set(owners[source.rank].heads) for source in wanted)
                met.update(source.rank for source in wanted)
            assert set(met) == set(range(there))
            assert all(source.readers == met[source.rank] for wanted in found for source in wanted)


def test_a_peer_that_cannot_be_is_refused() -> None:
    with pytest.raises(TransferError, match="4 KV heads cannot be cut into 3 ranks"):
        sources(HeadShard(4, 2, 0), 3)
    assert replace(HeadShard(4, 2, 0), rank=1).heads == range(2, 4)
