"""Every byte lands where its token, head and layer belong, whatever the two shapes."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvPart
from llmserve.engines.kv_transfer.layout.heads import sources
from llmserve.transfer.spans import check_batch
from tests.unit.engines.kv_transfer.shaped_memory import ShapedMemory, prompt_content

LAYERS, BLOCKS = 2, 40

# By the name of the layout: what a head keeps of its tokens, each in 6 to 16 bytes.
PACKINGS = {
    "LBHNC/kv": (KvPart(1, 1, 6),),
    "LBHNC/vec": (KvPart(3, 1, 2), KvPart(1, 1, 6)),
    "LBHNC/amx": (KvPart(1, 4, 32), KvPart(4, 2, 4)),
    "LBNHC/kv": (KvPart(1, 1, 6),),
}
UNITS = {"LBHNC/amx": 4}


def geometry(layout: str, block: int, shard: HeadShard, kernel: int = 0) -> KvGeometry:
    parts = PACKINGS[layout]
    cell = sum(part.rows * part.group_bytes // part.group_tokens for part in parts)
    size = block * len(shard.heads) * cell
    return KvGeometry((size,) * LAYERS, block, "bfloat16", layout, "m", shard, parts, kernel)


@dataclass(frozen=True)
class Case:
    """A prompt on all ranks of a prefill worker, wanted by all ranks of a decode worker."""

    layout: str
    kv_heads: int
    here: int  # tensor-parallel sizes
    there: int
    block_here: int
    block_there: int
    kernel_here: int
    kernel_there: int
    tokens: range
    prompt_tokens: int
    seed: int

    def ranks(self, size: int, block: int, kernel: int, rng: np.random.Generator) -> list[ShapedMemory]:
        shards = [HeadShard(self.kv_heads, size, rank) for rank in range(size)]
        return [ShapedMemory(geometry(self.layout, block, shard, kernel), BLOCKS, rng) for shard in shards]


# KV heads of the model, tensor-parallel size here, and there.
SPLITS = [
    (1, 1, 1), (1, 1, 3), (1, 4, 2), (1, 2, 3), (2, 1, 4), (3, 1, 1), (3, 1, 3), (3, 3, 1),
    (4, 1, 2), (4, 2, 1), (4, 2, 2), (4, 8, 2), (4, 2, 8), (6, 2, 3), (6, 3, 2),
]  # fmt: skip


@st.composite
def cases(draw: st.DrawFn, layout: str, split: tuple[int, int, int]) -> Case:
    unit = UNITS.get(layout, 1)
    kernel_here, kernel_there = (unit * draw(st.sampled_from([8, 6, 5, 3, 2, 1])) for _ in range(2))
    block_here = kernel_here * draw(st.sampled_from([1, 2]))
    block_there = kernel_there * draw(st.sampled_from([1, 2]))
    prompt_tokens = draw(st.integers(1, 40))
    end = prompt_tokens - draw(st.integers(0, min(3, prompt_tokens - 1)))
    return Case(
        layout=layout,
        kv_heads=split[0],
        here=split[1],
        there=split[2],
        block_here=block_here,
        block_there=block_there,
        kernel_here=kernel_here,
        kernel_there=kernel_there,
        tokens=range(draw(st.sampled_from([0, end // 3, end - 1])), end),
        prompt_tokens=prompt_tokens,
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("layout", list(PACKINGS))
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_every_byte_lands_right_and_no_other_changes(
    layout: str, split: tuple[int, int, int], data: st.DataObject
) -> None:
    case = data.draw(cases(layout, split))
    rng = np.random.default_rng(case.seed)
    cell = sum(part.rows * part.group_bytes // part.group_tokens for part in PACKINGS[case.layout])
    content = prompt_content(rng, LAYERS, case.prompt_tokens, case.kv_heads, cell)
    remote_ids = rng.permutation(BLOCKS)[: -(-case.prompt_tokens // case.block_there)].tolist()
    owners = case.ranks(case.there, case.block_there, case.kernel_there, rng)
    for owner in owners:
        owner.store(content, remote_ids)
    first_block = case.tokens.start // case.block_here
    local_ids = rng.permutation(BLOCKS)[: -(-case.tokens.stop // case.block_here) - first_block].tolist()
    for reader in case.ranks(case.here, case.block_here, case.kernel_here, rng):
        before = reader.layers.copy()
        written = _fetch(reader, owners, case.tokens, local_ids, remote_ids)
        heads = reader.geometry.shard.heads
        inside = slice(
            case.tokens.start - first_block * case.block_here,
            case.tokens.stop - first_block * case.block_here,
        )
        wanted = content[:, case.tokens.start : case.tokens.stop, heads.start : heads.stop]
        assert np.array_equal(reader.load(local_ids)[:, inside], wanted)
        assert len(np.unique(written)) == len(written), "no byte is fetched twice"
        changed = np.flatnonzero(before.ravel() != reader.layers.ravel())
        assert set(changed) <= set(written)
        others = np.setdiff1d(np.arange(BLOCKS), local_ids)
        assert np.array_equal(before[:, others], reader.layers[:, others])


def _fetch(
    reader: ShapedMemory,
    owners: list[ShapedMemory],
    tokens: range,
    local_ids: list[int],
    remote_ids: list[int],
) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """From all ranks; the positions of the bytes that were written."""
    written = []
    for source in sources(reader.geometry.shard, len(owners)):
        owner = owners[source.rank]
        assert reader.geometry.obstacle(owner.geometry) == ""
        if not source.heads:
            continue
        batch = reader.layout.batch_from(owner.geometry, source.heads, tokens, local_ids, remote_ids)
        sizes = [[layer.nbytes for layer in memory.layers] for memory in (reader, owner)]
        check_batch(batch, *sizes)
        into = reader.bytes_at(batch.local)
        reader.layers.ravel()[into] = owner.layers.ravel()[owner.bytes_at(batch.remote)]
        written.append(into)
    return np.concatenate(written)


@given(st.sampled_from(list(PACKINGS)), st.integers(1, 20), st.integers(0, 9), st.integers(0, 99))
def test_between_equal_shapes_it_is_the_batch_of_whole_blocks(
    layout: str, end: int, start: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mine = ShapedMemory(geometry(layout, 4, HeadShard(6, 2, 1)), BLOCKS, rng)
    tokens = range(min(start, end - 1), end)
    first, last = tokens.start // 4, -(-tokens.stop // 4)
    remote = np.sort(rng.permutation(BLOCKS)[:5]).tolist()
    local = np.sort(rng.permutation(BLOCKS)[: last - first]).tolist()
    batch = mine.layout.batch_from(mine.geometry, range(3, 6), tokens, local, remote)
    plain = mine.layout.batch(local, remote[first:last])
    for found, expected in ((batch.local, plain.local), (batch.remote, plain.remote)):
        assert np.array_equal(found.regions, expected.regions)
        assert np.array_equal(found.offsets, expected.offsets)
        assert np.array_equal(found.lengths, expected.lengths)


def test_pieces_that_follow_each_other_on_both_sides_are_one() -> None:
    one = HeadShard(1, 1, 0)
    mine, peer = geometry("LBHNC/kv", 8, one), geometry("LBHNC/kv", 4, one)
    layout = ShapedMemory(mine, BLOCKS, np.random.default_rng(1)).layout
    batch = layout.batch_from(peer, range(1), range(16), [3, 4], [10, 11, 12, 13])
    assert batch.local.offsets.tolist() == [3 * 8 * 6] * LAYERS
    assert batch.remote.offsets.tolist() == [10 * 4 * 6] * LAYERS
    assert batch.remote.lengths.tolist() == [16 * 6] * LAYERS


def test_whole_blocks_need_no_parts_and_layers_may_differ() -> None:
    """One of three heads: a third of each block, in one piece."""
    mine = KvGeometry((40, 8), 4, layout="LBHNC/neon.4", shard=HeadShard(3, 3, 1))
    peer = KvGeometry((120, 24), 4, layout="LBHNC/neon.4", shard=HeadShard(3, 1, 0))
    assert mine.obstacle(peer) == peer.obstacle(mine) == ""
    layout = ShapedMemory(replace(mine, block_bytes=(40, 40)), 9, np.random.default_rng(1)).layout
    layout = replace(layout, geometry=mine)
    batch = layout.batch_from(peer, range(1, 2), range(6), [5, 2], [7, 1])
    assert batch.local.offsets.tolist() == [200, 80, 40, 16]
    assert batch.remote.offsets.tolist() == [7 * 120 + 40, 120 + 40, 7 * 24 + 8, 24 + 8]
    assert batch.local.lengths.tolist() == [40, 40, 8, 8]


@pytest.mark.parametrize(
    ("tokens", "local", "remote"),
    [
        (range(9), [1], [1, 2, 3]),
        (range(9), [1, 2], [1, 2]),
        (range(8, 9), [], [1, 2, 3]),
        (range(3, 3), [1], [1, 2]),
    ],
)
def test_too_few_blocks_are_refused(tokens: range, local: list[int], remote: list[int]) -> None:
    one = HeadShard(1, 1, 0)
    layout = ShapedMemory(geometry("LBHNC/kv", 8, one), 9, np.random.default_rng(1)).layout
    with pytest.raises(TransferError, match="lack some"):
        layout.batch_from(geometry("LBHNC/kv", 4, one), range(1), tokens, local, remote)
