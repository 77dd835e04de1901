"""vLLM's KV tensors, as its workers show them to a connector."""

import math

import pytest
import torch

from llmserve.core.errors import ManifestError
from llmserve.engines.connector.memory import kv_layout
from llmserve.engines.connector.packing import Packing, packing_of
from llmserve.engines.kv_transfer import HeadShard, KvLayout

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


def test_memory_that_is_not_block_by_block_is_refused() -> None:
    cross_layer = torch.zeros(BLOCKS, 3, HEADS, TOKENS, CONTENT)[:, 0]
    assert cross_layer.stride(0) == 3 * math.prod(cross_layer.shape[1:])
    with pytest.raises(ManifestError, match="KV layout not supported"):
        layout_of(cross_layer)
