"""vLLM's KV tensors as a KvLayout: where each block of each layer lies.

vLLM gives one [B, H, N, C] view per layer into one allocation. In the layouts that keep a block of a
layer in one piece (LBHNC, the CPU's), block b of a layer begins at b times the block's bytes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmserve.core.errors import StartFailed
from llmserve.engines.handover import KvLayout
from llmserve.transfer.base import Region

if TYPE_CHECKING:
    import torch


def kv_layout(
    kv_caches: Mapping[str, "torch.Tensor"],
    total_blocks: int,
    block_size_tokens: int,
    *,
    kv_dtype: str,
    layout: str,
    model: str,
) -> KvLayout:
    """Errors: StartFailed for memory or a layout that hand-over cannot address."""
    # Layers that share their KV cache show the same memory twice.
    tensors = {tensor.data_ptr(): tensor for tensor in kv_caches.values()}
    sizes = tuple(_block_bytes(tensor, total_blocks) for tensor in tensors.values())
    regions = tuple(
        Region(address, size * total_blocks) for address, size in zip(tensors, sizes, strict=True)
    )
    return KvLayout(regions, sizes, block_size_tokens, kv_dtype=kv_dtype, layout=layout, model=model)


def _block_bytes(tensor: "torch.Tensor", total_blocks: int) -> int:
    if tensor.device.type != "cpu":
        raise StartFailed(
            f"KV hand-over from {tensor.device.type} memory is not available yet; "
            "set deployment.disaggregated: false"
        )
    # Attention kernels may see a block as several smaller ones; together they are contiguous.
    kernel_blocks, remainder = divmod(tensor.shape[0], total_blocks)
    stride, content = tensor.stride(0), tensor[0].numel()
    if remainder or stride != content:
        raise StartFailed(
            f"KV layout not supported: {tensor.shape[0]} kernel blocks for {total_blocks} blocks, "
            f"{content} elements a block, {stride} apart"
        )
    return int(stride * tensor.element_size() * kernel_blocks)
