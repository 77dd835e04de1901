"""vLLM's KV tensors as a KvLayout: where each block of each layer lies.

vLLM gives one [B, H, N, C] view per layer into one allocation. In the layouts that keep a block of a
layer in one piece (LBHNC, the CPU's), block b of a layer begins at b times the block's bytes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import engine_on_gpu
from llmserve.engines.connector.packing import Packing
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvLayout
from llmserve.transfer.base import Region

if TYPE_CHECKING:
    import torch


def kv_layout(
    kv_caches: Mapping[str, "torch.Tensor"],
    total_blocks: int,
    block_size_tokens: int,
    *,
    kv_dtype: str,
    axes: str,
    packing: Packing,
    shard: HeadShard,
    model: str,
) -> KvLayout:
    """axes: vLLM's name of its layout. The layout's name here is that and the packing's, and whatever else a
    peer must have in common. Errors: ManifestError for memory or a layout that hand-over cannot address."""
    # Layers that share their KV cache show the same memory twice.
    tensors = {tensor.data_ptr(): tensor for tensor in kv_caches.values()}
    sizes = tuple(_block_bytes(tensor, total_blocks) for tensor in tensors.values())
    regions = tuple(
        Region(address, size * total_blocks) for address, size in zip(tensors, sizes, strict=True)
    )
    first = next(iter(tensors.values()))
    kernel_tokens = block_size_tokens // (first.shape[0] // total_blocks)
    alike = all(tensor.shape[1:] == first.shape[1:] for tensor in tensors.values())
    known = alike and first.shape[2] == kernel_tokens and _lies_as(axes, len(shard.heads), first)
    by_tokens = known and bool(packing.parts)
    by_heads = by_tokens or (known and "HN" in axes)
    name = packing.name if by_tokens else f"{packing.name}.{kernel_tokens}"
    geometry = KvGeometry(
        sizes,
        block_size_tokens,
        kv_dtype=kv_dtype,
        layout=f"{axes}/{name}" if by_heads else f"whole/{name}x{len(shard.heads)}",
        model=model,
        shard=shard,
        parts=packing.parts if by_tokens else (),
        kernel_block_tokens=kernel_tokens,
    )
    return KvLayout(regions, geometry)


def layer_indices(kv_caches: Mapping[str, "torch.Tensor"]) -> dict[str, int]:
    """Which region of the layout each layer writes. One that shares the KV of an earlier one writes none."""
    owners: dict[int, str] = {}
    for name, tensor in kv_caches.items():
        owners.setdefault(tensor.data_ptr(), name)
    return {name: index for index, name in enumerate(owners.values())}


def _lies_as(axes: str, held_heads: int, tensor: "torch.Tensor") -> bool:
    """Whether a block has a slot for each head, and lies in memory as the layout's name says."""
    _, heads, tokens, content = tensor.shape
    strides = (content, heads * content) if "NH" in axes else (tokens * content, content)
    sizes = ((heads, tensor.stride(1), strides[0]), (tokens, tensor.stride(2), strides[1]))
    return heads == held_heads and all(size == 1 or found == wanted for size, found, wanted in sizes)


def _block_bytes(tensor: "torch.Tensor", total_blocks: int) -> int:
    if tensor.device.type != "cpu":
        raise engine_on_gpu().as_error()
    # Attention kernels may see a block as several smaller ones; together they are contiguous.
    kernel_blocks, remainder = divmod(tensor.shape[0], total_blocks)
    stride, content = tensor.stride(0), tensor[0].numel()
    if remainder or stride != content:
        message = (
            f"KV layout not supported: {tensor.shape[0]} kernel blocks for {total_blocks} blocks, "
            f"{content} elements a block, {stride} apart"
        )
        raise Conflict((("models", "primary", "source"),), message).as_error()
    return int(stride * tensor.element_size() * kernel_blocks)
