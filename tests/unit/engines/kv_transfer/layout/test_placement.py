"""Layers of all axis orders, padded or not, beside a copy of each token and head by torch's own indexing."""

import itertools
import math
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from llmserve.core.errors import TransferError
from llmserve.core.kv_params import BlockTable
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvLayout, KvPart
from llmserve.engines.kv_transfer.layout.heads import sources
from llmserve.engines.kv_transfer.layout.placement import AXIS_ORDERS, LayerPlacement, LayerView, place
from llmserve.transfer.base import Memory, Region, Spans
from llmserve.transfer.spans import check_batch

LAYERS, BLOCKS, TOKENS, CONTENT = 3, 11, 4, 6
HNC = tuple(axes for axes in AXIS_ORDERS if axes.index("H") < axes.index("N"))
NHC = tuple(axes for axes in AXIS_ORDERS if axes.index("N") < axes.index("H"))
PAIRS = [*itertools.product(HNC, repeat=2), *itertools.product(NHC, repeat=2)]


class ViewedMemory:
    """An allocation of random bytes, and a view [B, H, N, C] of it for each layer. padding: bytes behind each
    kernel block's innermost axes. cuts: kernel blocks of a block."""

    def __init__(self, axes: str, shard: HeadShard, padding: int = 0, cuts: int = 1, seed: int = 0) -> None:
        self.axes, self.cuts = axes, cuts
        kernel = TOKENS // cuts
        sizes = {"L": LAYERS, "B": BLOCKS * cuts, "H": len(shard.heads), "N": kernel, "C": CONTENT}
        strides, extent = {}, 1
        for axis in reversed(axes):
            extent += padding if axis == "B" else 0
            strides[axis] = extent
            extent *= sizes[axis]
        random = np.random.default_rng(seed)
        self.bytes = torch.from_numpy(random.integers(0, 256, extent, np.uint8))
        shape = tuple(sizes[axis] for axis in "BHNC")
        self.views = [
            self.bytes.as_strided(shape, tuple(strides[axis] for axis in "BHNC"), layer * strides["L"])
            for layer in range(LAYERS)
        ]
        self.allocation = Region(self.bytes.data_ptr(), extent)
        self.regions, placements = place([self.view(tensor) for tensor in self.views])
        self.layout = KvLayout(
            self.regions,
            KvGeometry(
                (len(shard.heads) * TOKENS * CONTENT,) * LAYERS,
                TOKENS,
                layout=f"{axes}/kv",
                shard=shard,
                parts=(KvPart(1, 1, CONTENT),),
                kernel_block_tokens=kernel,
                placements=placements,
            ),
        )

    def view(self, tensor: torch.Tensor) -> LayerView:
        view = LayerView(
            tensor.data_ptr(), tuple(tensor.shape[:3]), tensor.stride()[:3], CONTENT, self.allocation
        )
        assert view.obstacle(self.axes) == ""
        return view

    def token(self, layer: int, block: int, head: int, token: int) -> torch.Tensor:
        """The content of one token and head, counted within this rank and the block."""
        kernel, inside = divmod(token, TOKENS // self.cuts)
        return self.views[layer][block * self.cuts + kernel, head, inside]

    def positions(self, spans: Spans) -> npt.NDArray[np.int64]:
        """Of every byte of the spans in the allocation, in order."""
        bases = np.array([region.address for region in self.regions]) - self.allocation.address
        starts = bases[spans.regions] + spans.offsets
        before = np.cumsum(spans.lengths) - spans.lengths
        found: npt.NDArray[np.int64] = np.repeat(starts - before, spans.lengths)
        return found + np.arange(spans.total_bytes)

    def lengths(self) -> list[int]:
        return [region.length_bytes for region in self.regions]


def expect_tokens(
    reader: ViewedMemory,
    owners: list[ViewedMemory],
    tokens: range,
    local_ids: list[int],
    remote_ids: list[int],
    layers: range = range(LAYERS),
) -> torch.Tensor:
    """What the reader's allocation should hold, copied token by token; the reader stays as it is."""
    kept = reader.bytes.clone()
    shard = reader.layout.geometry.shard
    for source in sources(shard, len(owners)):
        owner = owners[source.rank]
        first_there = owner.layout.geometry.shard.heads.start
        places = itertools.product(layers, source.heads, tokens)
        for layer, head, token in places:
            there, at = divmod(token, TOKENS)
            here = there - tokens.start // TOKENS
            reader.token(layer, local_ids[here], head - shard.heads.start, at).copy_(
                owner.token(layer, remote_ids[there], head - first_there, at)
            )
    wanted = reader.bytes.clone()
    reader.bytes.copy_(kept)
    return wanted


@pytest.mark.parametrize(("here", "there"), PAIRS)
@pytest.mark.parametrize("padding", [(0, 0), (6, 0), (0, 12), (18, 6)])
@pytest.mark.parametrize("cuts", [1, 2])
def test_whole_blocks_land_where_torch_would_put_them(
    here: str, there: str, padding: tuple[int, int], cuts: int
) -> None:
    shard = HeadShard(kv_heads=3)
    reader = ViewedMemory(here, shard, padding[0], cuts, seed=1)
    owner = ViewedMemory(there, shard, padding[1], cuts, seed=2)
    local_ids, remote_ids = [7, 2, 3, 4, 10], [0, 5, 6, 9, 1]
    tokens = range(len(local_ids) * TOKENS)
    assert reader.layout.geometry.obstacle(owner.layout.geometry) == ""
    batch = reader.layout.batch_from(
        owner.layout.geometry,
        shard.heads,
        tokens,
        BlockTable(tuple(local_ids)),
        BlockTable(tuple(remote_ids)),
    )
    check_batch(batch, reader.lengths(), owner.lengths())
    wanted = expect_tokens(reader, [owner], tokens, local_ids, remote_ids)
    reader.bytes[reader.positions(batch.local)] = owner.bytes[owner.positions(batch.remote)]
    assert torch.equal(reader.bytes, wanted)


@pytest.mark.parametrize(("here", "there"), PAIRS)
@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (4, 2)])
def test_heads_and_tokens_of_several_ranks_land_right(here: str, there: str, ranks: tuple[int, int]) -> None:
    """The reader's tensor parallelism and kernel blocks differ from the owner's, and both are padded."""
    local_ids, remote_ids, tokens = [3, 8], [1, 4, 10], range(TOKENS + 1, 3 * TOKENS - 1)
    owners = [ViewedMemory(there, HeadShard(4, ranks[1], rank), 6, 2, rank) for rank in range(ranks[1])]
    for rank in range(ranks[0]):
        reader = ViewedMemory(here, HeadShard(4, ranks[0], rank), 12, 1, 9)
        wanted = expect_tokens(reader, owners, tokens, local_ids, remote_ids)
        for source in sources(reader.layout.geometry.shard, ranks[1]):
            owner = owners[source.rank]
            if source.heads:
                assert reader.layout.geometry.obstacle(owner.layout.geometry) == ""
                local, remote = BlockTable(tuple(local_ids), (1,)), BlockTable(tuple(remote_ids))
                batch = reader.layout.batch_from(owner.layout.geometry, source.heads, tokens, local, remote)
                check_batch(batch, reader.lengths(), owner.lengths())
                reader.bytes[reader.positions(batch.local)] = owner.bytes[owner.positions(batch.remote)]
        assert torch.equal(reader.bytes, wanted)


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_a_push_of_some_layers_lands_right(here: str, there: str) -> None:
    """Here is the writer: `local` is where it reads."""
    shard = HeadShard(kv_heads=2)
    writer, target = ViewedMemory(here, shard, 6, seed=1), ViewedMemory(there, shard, 0, seed=2)
    sent, placed = [7, 2, 3], [0, 5, 6]
    wanted = expect_tokens(target, [writer], range(3 * TOKENS), placed, sent, range(1, LAYERS))
    rows = [(layer, sent, placed) for layer in range(1, LAYERS)]
    batch = writer.layout.layer_batch(rows, target.layout.geometry)
    check_batch(batch, writer.lengths(), target.lengths())
    target.bytes[target.positions(batch.remote)] = writer.bytes[writer.positions(batch.local)]
    assert torch.equal(target.bytes, wanted)


@pytest.mark.parametrize(
    ("axes", "padding", "pieces"),
    [
        ("LBHNC", 0, LAYERS),  # adjacent blocks of a layer
        ("LBHNC", 6, LAYERS * 4),
        ("LHBNC", 0, LAYERS * 3),  # adjacent blocks of a head
        ("BLHNC", 0, 1),  # all layers of adjacent blocks
        ("BLHNC", 6, 4),  # all layers of a block
        ("BHLNC", 0, 1),
    ],
)
def test_what_is_adjacent_on_both_sides_is_one_piece(axes: str, padding: int, pieces: int) -> None:
    shard = HeadShard(kv_heads=3)
    reader, owner = (ViewedMemory(axes, shard, padding, seed=seed) for seed in (1, 2))
    batch = reader.layout.batch([3, 4, 5, 6], [1, 2, 3, 4], owner.layout.geometry)
    assert len(batch.local.lengths) == pieces


@pytest.mark.parametrize("axes", AXIS_ORDERS)
@pytest.mark.parametrize(("padding", "cuts"), [(0, 1), (6, 1), (6, 2)])
def test_the_memory_has_room_for_all_blocks_and_no_more(axes: str, padding: int, cuts: int) -> None:
    layout = ViewedMemory(axes, HeadShard(kv_heads=3), padding, cuts).layout
    assert layout.total_blocks == BLOCKS
    last = layout.regions[-1]
    shorter = (*layout.regions[:-1], replace(last, length_bytes=last.length_bytes - 2 * padding - 1))
    assert replace(layout, regions=shorter).total_blocks == BLOCKS - 1


# -- what is registered


def test_dense_layers_of_the_host_are_regions_of_their_own() -> None:
    """As earlier versions know it: no placements are told to the peer."""
    memory = ViewedMemory("LBHNC", HeadShard(kv_heads=2))
    assert memory.layout.geometry.placements == ()
    assert [region.address for region in memory.regions] == [view.data_ptr() for view in memory.views]
    assert sum(memory.lengths()) == len(memory.bytes)


@pytest.mark.parametrize("axes", ["LBHNC", "BLHNC"])
def test_memory_of_a_gpu_is_one_region(axes: str) -> None:
    allocation = Region(1000, 600, Memory(0))
    views = [LayerView(1000 + start, (2, 1, 4), (50, 50, 10), 10, allocation) for start in (0, 100)]
    regions, placements = place(views)
    assert regions == (allocation,)
    assert placements == (LayerPlacement(0, 0, 50), LayerPlacement(0, 100, 50))


def test_two_allocations_are_two_regions() -> None:
    memories = [ViewedMemory("BLHNC", HeadShard(kv_heads=2), seed=seed) for seed in range(2)]
    views = [memory.view(tensor) for memory in memories for tensor in memory.views[:2]]
    regions, placements = place(views)
    assert regions == tuple(memory.allocation for memory in memories)
    assert [one.region for one in placements] == [0, 0, 1, 1]


def test_a_peer_is_told_the_placements() -> None:
    geometry = ViewedMemory("BHLNC", HeadShard(kv_heads=2), 6).layout.geometry
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(geometry), type=KvGeometry) == geometry
    assert len(geometry.placements) == LAYERS
    assert geometry.placements[1].head_stride > 0


@pytest.mark.parametrize(
    "wrong", [{"region": -1}, {"region": 1 << 16}, {"offset": -1}, {"block_stride": 0}, {"head_stride": -1}]
)
def test_placements_out_of_bounds_are_refused(wrong: dict[str, int]) -> None:
    fields = {"region": 0, "offset": 0, "block_stride": 1, **wrong}
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=LayerPlacement)


def test_placements_of_other_layers_are_refused() -> None:
    with pytest.raises(TransferError, match="1 placements of 2 layers"):
        KvGeometry((8, 8), 4, placements=(LayerPlacement(0, 0, 8),))


def test_a_layer_beyond_the_regions_is_refused() -> None:
    geometry = KvGeometry((8,), 4, placements=(LayerPlacement(1, 0, 8),))
    with pytest.raises(TransferError, match="beyond the 1"):
        KvLayout((Region(0, 80),), geometry)


# -- what is not known


def test_an_unknown_order_is_named() -> None:
    view = LayerView(0, (5, 2, 4), (48, 24, 6), 6, Region(0, 240))
    assert view.obstacle("LBNCH").startswith("'LBNCH' is not one of LBHNC, LBNHC")


@pytest.mark.parametrize(
    ("axes", "strides"),
    [
        ("LBHNC", (0, 24, 6)),  # all blocks in one place
        ("LBHNC", (-48, 24, 6)),
        ("LBHNC", (48, 23, 6)),  # heads that overlap
        ("LBHNC", (48, 24, 7)),  # gaps between tokens
        ("LBHNC", (48, 6, 12)),  # heads inside
        ("LBNHC", (48, 24, 6)),  # heads outside
        ("LBNHC", (48, 7, 12)),  # gaps between heads of a token
    ],
)
def test_a_view_that_is_not_what_its_layout_says_is_named(axes: str, strides: tuple[int, int, int]) -> None:
    view = LayerView(0, (5, 2, 4), strides, 6, Region(0, 1000))
    assert view.obstacle(axes) == f"a view (5, 2, 4) of 6 bytes with strides {strides} is not {axes}"


@pytest.mark.parametrize("orders", [("LBHNC", "LBNHC"), ("BLNHC", "BLHNC")])
def test_heads_inside_and_outside_do_not_fit(orders: tuple[str, str]) -> None:
    here, there = (ViewedMemory(axes, HeadShard(kv_heads=2)).layout.geometry for axes in orders)
    assert here.obstacle(there) == f"layout differs: '{orders[1]}/kv' there, '{orders[0]}/kv' here"


def test_sizes_of_a_view() -> None:
    view = LayerView(0, (5, 2, 4), (48, 24, 6), 6, Region(0, 240))
    assert (view.kernel_block_bytes, view.is_dense, view.head_stride) == (math.prod((2, 4, 6)), True, 0)
    assert not replace(view, strides=(49, 24, 6)).is_dense
    assert replace(view, strides=(24, 120, 6)).head_stride == 120


@pytest.mark.parametrize(
    ("strides", "contiguous"),
    [
        ((48, 24, 6), True),
        ((99, 24, 6), True),
        ((48, 6, 12), True),
        ((48, 25, 6), False),
        ((48, 24, 7), False),
    ],
)
def test_a_block_in_one_piece_can_be_copied_whole(strides: tuple[int, int, int], contiguous: bool) -> None:
    assert LayerView(0, (5, 2, 4), strides, 6, Region(0, 1000)).is_contiguous_inside is contiguous


def test_axes_of_one_step_may_have_any_stride() -> None:
    one_head = LayerView(0, (5, 1, 4), (24, 7, 6), 6, Region(0, 120))
    one_token = LayerView(0, (5, 2, 1), (12, 6, 99), 6, Region(0, 60))
    for view in (one_head, one_token):
        assert (view.obstacle("LBHNC"), view.obstacle("LBNHC"), view.head_stride) == ("", "", 0)
        assert view.is_contiguous_inside
