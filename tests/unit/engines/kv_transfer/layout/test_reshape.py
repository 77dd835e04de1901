"""Every byte lands where its token, head and layer belong, whatever the two shapes."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from llmserve.core.errors import TransferError
from llmserve.core.kv_params import BlockTable
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvPart
from llmserve.engines.kv_transfer.layout.heads import sources
from llmserve.transfer.base import Batch
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


def _from(tokens: range, geometry: KvGeometry, block_ids: list[int]) -> BlockTable:
    return BlockTable(tuple(block_ids), (tokens.start // geometry.block_size_tokens,))


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
        batch = reader.layout.batch_from(
            owner.geometry,
            source.heads,
            tokens,
            _from(tokens, reader.geometry, local_ids),
            BlockTable(tuple(remote_ids)),
        )
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
    batch = mine.layout.batch_from(
        mine.geometry, range(3, 6), tokens, _from(tokens, mine.geometry, local), BlockTable(tuple(remote))
    )
    plain = mine.layout.batch(local, remote[first:last])
    for found, expected in ((batch.local, plain.local), (batch.remote, plain.remote)):
        assert np.array_equal(found.regions, expected.regions)
        assert np.array_equal(found.offsets, expected.offsets)
        assert np.array_equal(found.lengths, expected.lengths)


def test_pieces_that_follow_each_other_on_both_sides_are_one() -> None:
    one = HeadShard(1, 1, 0)
    mine, peer = geometry("LBHNC/kv", 8, one), geometry("LBHNC/kv", 4, one)
    layout = ShapedMemory(mine, BLOCKS, np.random.default_rng(1)).layout
    batch = layout.batch_from(peer, range(1), range(16), BlockTable((3, 4)), BlockTable((10, 11, 12, 13)))
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
    batch = layout.batch_from(peer, range(1, 2), range(6), BlockTable((5, 2)), BlockTable((7, 1)))
    assert batch.local.offsets.tolist() == [200, 80, 40, 16]
    assert batch.remote.offsets.tolist() == [7 * 120 + 40, 120 + 40, 7 * 24 + 8, 24 + 8]
    assert batch.local.lengths.tolist() == [40, 40, 8, 8]


@pytest.mark.parametrize(
    ("tokens", "local", "remote"),
    [
        (range(9), (1,), (1, 2, 3)),
        (range(9), (1, 2), (1, 2)),
        (range(3, 3), (1,), (1, 2)),
    ],
)
def test_too_few_blocks_are_refused(tokens: range, local: tuple[int, ...], remote: tuple[int, ...]) -> None:
    one = HeadShard(1, 1, 0)
    layout = ShapedMemory(geometry("LBHNC/kv", 8, one), 9, np.random.default_rng(1)).layout
    peer = geometry("LBHNC/kv", 4, one)
    with pytest.raises(TransferError, match="lack some"):
        layout.batch_from(peer, range(1), tokens, BlockTable(local), BlockTable(remote))


# -- several groups of layers: the first has a window of 6 tokens, the second none


def _two_groups(block: int) -> KvGeometry:
    return replace(geometry("LBHNC/kv", block, HeadShard(1, 1, 0)), windows=(6, 0))


def _pairs(batch: Batch) -> set[tuple[int, int]]:
    """Which byte goes where, of the first region."""
    rows = zip(
        batch.local.regions, batch.local.offsets, batch.remote.offsets, batch.local.lengths, strict=True
    )
    return {(int(a) + i, int(b) + i) for region, a, b, length in rows if region == 0 for i in range(length)}


def _places(here: int, there: int, pairs: dict[int, tuple[int, int]]) -> set[tuple[int, int]]:
    """Where each token's bytes lie, in blocks of these sizes. pairs: by token, its block here and there."""
    cell = 6
    return {
        ((near * here + token % here) * cell + byte, (far * there + token % there) * cell + byte)
        for token, (near, far) in pairs.items()
        for byte in range(cell)
    }


def test_blocks_behind_a_window_are_left_out_in_pairs() -> None:
    """16 tokens in blocks of 4: the next one sees those from 11 on."""
    mine = _two_groups(4)
    layout = ShapedMemory(mine, BLOCKS, np.random.default_rng(1)).layout
    local = BlockTable((12, 13, 20, 21, 22, 23), (2, 0))
    remote = BlockTable((32, 33, 5, 6, 7, 8), (2, 0))
    batch = layout.batch_from(mine, range(1), range(16), local, remote)
    expected = layout.batch([12, 13, 20, 21, 22, 23], [32, 33, 5, 6, 7, 8])
    assert _pairs(batch) == _pairs(expected)


def test_a_reader_that_has_more_of_the_prompt_gets_only_the_rest() -> None:
    mine = _two_groups(4)
    layout = ShapedMemory(mine, BLOCKS, np.random.default_rng(1)).layout
    remote = BlockTable((32, 33, 5, 6, 7, 8), (2, 0))
    batch = layout.batch_from(mine, range(1), range(12, 16), BlockTable((13, 23), (3, 3)), remote)
    assert _pairs(batch) == _pairs(layout.batch([13, 23], [33, 8]))


@pytest.mark.parametrize("there", [4, 8])
def test_a_reader_that_needs_what_the_owners_window_has_left_behind_is_refused(there: int) -> None:
    """The reader wants the first 12 of 16 tokens: its next token sees those from 7 on."""
    layout = ShapedMemory(_two_groups(4), BLOCKS, np.random.default_rng(1)).layout
    local = BlockTable((11, 12, 20, 21, 22), (1, 0))
    remote = BlockTable((32, 33, 5, 6, 7, 8), (2, 0)) if there == 4 else BlockTable((33, 5, 6), (1, 0))
    with pytest.raises(TransferError, match=r"are needed|sees more of them"):
        layout.batch_from(_two_groups(there), range(1), range(12), local, remote)


def test_blocks_of_other_sizes_bring_what_the_window_sees() -> None:
    """19 tokens; the next one sees those from 14 on. The owner's blocks of 4 begin at 12, the reader's of 8
    at 8: what lies between is not seen, and not copied."""
    mine, peer = _two_groups(8), _two_groups(4)
    layout = ShapedMemory(mine, BLOCKS, np.random.default_rng(1)).layout
    local = BlockTable((11, 12, 20, 21, 22), (1, 0))
    remote = BlockTable((33, 34, 5, 6, 7, 8, 9), (3, 0))
    batch = layout.batch_from(peer, range(1), range(19), local, remote)
    window = {token: ((11, 12)[token // 8 - 1], (33, 34)[token // 4 - 3]) for token in range(12, 19)}
    whole = {token: ((20, 21, 22)[token // 8], (5, 6, 7, 8, 9)[token // 4]) for token in range(19)}
    assert _pairs(batch) == _places(8, 4, window) | _places(8, 4, whole)
