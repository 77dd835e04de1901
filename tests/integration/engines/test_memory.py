"""vLLM's KV tensors, as its workers show them to a connector."""

import pytest
import torch

from llmserve.core.errors import ManifestError
from llmserve.engines.connector.memory import Packing, kv_layout, packing_of
from llmserve.engines.kv_transfer import HeadShard, KvLayout
from llmserve.transfer.base import Region

BLOCKS, HEADS, TOKENS, CONTENT = 5, 2, 32, 128
KNOWN, UNKNOWN = packing_of("vec", CONTENT, 2), Packing("neon")


def tensor(
    axes: str = "LBHNC", heads: int = HEADS, tokens: int = TOKENS, blocks: int = BLOCKS
) -> torch.Tensor:
    """[B, H, N, C], in the memory order of the name."""
    if "NH" in axes:
        return torch.zeros(blocks, tokens, heads, CONTENT, dtype=torch.bfloat16).transpose(1, 2)
    return torch.zeros(blocks, heads, tokens, CONTENT, dtype=torch.bfloat16)


def layout_of(*tensors: torch.Tensor, axes: str = "LBHNC", packing: Packing = KNOWN) -> KvLayout:
    caches = {f"layer.{index}": tensor for index, tensor in enumerate(tensors)}
    return kv_layout(
        caches,
        BLOCKS,
        TOKENS,
        kv_dtype="bfloat16",
        axes=axes,
        packing=packing,
        shard=HeadShard(4, 2, 1),
        model="m",
    )


def test_blocks_that_can_be_cut() -> None:
    layers = tensor(), tensor()
    layout = layout_of(*layers)
    assert layout.geometry.layout == "LBHNC/vec"
    assert layout.geometry.parts == KNOWN.parts
    assert layout.geometry.block_bytes == (HEADS * TOKENS * CONTENT * 2,) * 2
    assert [region.address for region in layout.regions] == [layer.data_ptr() for layer in layers]
    assert layout.total_blocks == BLOCKS


def test_heads_inside() -> None:
    layout = layout_of(tensor("LBNHC"), axes="LBNHC", packing=packing_of("flash_attn", CONTENT, 2))
    assert (layout.geometry.layout, layout.geometry.heads_inside) == ("LBNHC/kv", True)


def test_layers_that_share_their_memory_count_once() -> None:
    shared = tensor()
    assert len(layout_of(shared, shared).regions) == 1


def test_kernel_blocks_smaller_than_the_engines() -> None:
    layout = layout_of(tensor(tokens=TOKENS // 2, blocks=2 * BLOCKS))
    assert (layout.geometry.kernel_block_tokens, layout.geometry.layout) == (TOKENS // 2, "LBHNC/vec")
    assert layout.geometry.block_bytes == (HEADS * TOKENS * CONTENT * 2,)


@pytest.mark.parametrize(
    ("layer", "axes", "packing", "name"),
    [
        (tensor(), "LBHNC", UNKNOWN, "LBHNC/neon.32"),
        (tensor("LBNHC"), "LBNHC", UNKNOWN, "whole/neon.32x2"),
        (tensor("LBNHC"), "LBHNC", KNOWN, "whole/vec.32x2"),  # not what the name says
        (tensor(heads=2 * HEADS), "LBHNC", KNOWN, "whole/vec.32x2"),  # K and V as heads of their own
        (tensor(tokens=TOKENS // 4), "LBHNC", KNOWN, "whole/vec.32x2"),  # several tokens in one state
    ],
)
def test_blocks_that_cannot_be_cut_have_their_size_in_the_name(
    layer: torch.Tensor, axes: str, packing: Packing, name: str
) -> None:
    layout = layout_of(layer, axes=axes, packing=packing)
    assert (layout.geometry.layout, layout.geometry.parts) == (name, ())


def test_layers_of_different_width_cannot_be_cut() -> None:
    assert layout_of(tensor(), tensor()[..., : CONTENT // 2].contiguous()).geometry.layout == "whole/vec.32x2"


def test_layers_between_each_other_are_placed() -> None:
    """In the orders that begin with B, a block of a layer is followed by that of the next one."""
    memory = torch.zeros(BLOCKS, 3, HEADS, TOKENS, CONTENT, dtype=torch.bfloat16)
    layout = layout_of(*(memory[:, layer] for layer in range(3)), axes="BLHNC")
    size = HEADS * TOKENS * CONTENT * 2
    assert layout.regions == (Region(memory.data_ptr(), memory.nbytes),)
    assert [(one.offset, one.block_stride) for one in layout.geometry.placements] == [
        (layer * size, 3 * size) for layer in range(3)
    ]
    assert (layout.total_blocks, layout.geometry.parts) == (BLOCKS, KNOWN.parts)


def test_heads_that_lie_apart_are_placed() -> None:
    memory = torch.zeros(HEADS, BLOCKS, TOKENS, CONTENT, dtype=torch.bfloat16)
    (one,) = layout_of(memory.transpose(0, 1), axes="LHBNC").geometry.placements
    assert (one.block_stride, one.head_stride) == (TOKENS * CONTENT * 2, BLOCKS * TOKENS * CONTENT * 2)


@pytest.mark.parametrize("axes", ["LBHNC", "LBCHN"])
def test_memory_that_does_not_lie_as_its_name_says_is_refused(axes: str) -> None:
    gaps_between_tokens = torch.zeros(BLOCKS, HEADS, TOKENS, 2 * CONTENT, dtype=torch.bfloat16)[..., :CONTENT]
    with pytest.raises(ManifestError, match=f"KV layout not supported: .*{axes}"):
        layout_of(gaps_between_tokens, axes=axes)


def test_kernel_blocks_that_do_not_make_up_blocks_are_refused() -> None:
    with pytest.raises(ManifestError, match="6 kernel blocks for 5 blocks"):
        layout_of(tensor(blocks=6))
