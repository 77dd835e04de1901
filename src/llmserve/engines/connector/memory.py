"""vLLM's KV tensors as a KvLayout: where each block of each layer lies.

vLLM gives one [B, H, N, C] view per layer into one allocation. Where they lie is found from their strides
(engines/kv_transfer/layout/placement.py), whichever of vLLM's six axis orders it has chosen.

The layout's name says where blocks, heads and tokens lie; how a kernel packs the last axes is its own affair:
on CPU each instruction set transposes or interleaves tokens differently. Equal names of a packing mean equal
bytes. tests/integration/engines/test_packing.py lets vLLM's kernels write tokens and looks where they land.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import MODEL_SOURCE
from llmserve.core.errors import ManifestError
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvLayout, KvPart
from llmserve.engines.kv_transfer.layout.placement import LayerView, place
from llmserve.transfer.base import HOST, Memory, Region

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


_CPU = "CPU_ATTN"
_SIDE_BY_SIDE = ("flash_attn", "flashinfer", "triton_attn", "flex_attention")
_AMX_TOKENS, _AMX_PAIR, _AMX_ELEMENTS = 16, 2, 16


@dataclass(frozen=True, slots=True)
class Packing:
    """parts: of one head, as KvGeometry wants them; empty when it is not known how the kernel packs."""

    name: str
    parts: tuple[KvPart, ...] = ()


def packing_of(kernel: str, head_elements: int, element_bytes: int) -> Packing:
    """head_elements: K and V of one token and head."""
    each = head_elements // 2
    if kernel in _SIDE_BY_SIDE:  # a token's K, then its V
        return Packing("kv", (KvPart(1, 1, head_elements * element_bytes),))
    if kernel in ("vec", "vec16"):  # all K, transposed, then all V
        return Packing("vec", (KvPart(each, 1, element_bytes), KvPart(1, 1, each * element_bytes)))
    if kernel == "amx":  # tiles: K of 16 tokens; V of pairs of tokens, 16 elements each
        pair_bytes = _AMX_PAIR * _AMX_ELEMENTS * element_bytes
        keys = KvPart(1, _AMX_TOKENS, _AMX_TOKENS * each * element_bytes)
        return Packing("amx", (keys, KvPart(each // _AMX_ELEMENTS, _AMX_PAIR, pair_bytes)))
    return Packing(kernel)


def kernel_of(config: "VllmConfig", layer_names: Iterable[str], head_elements: int) -> str:
    """The attention kernel of these layers: a CPU instruction set, else the backend's name in lower case."""
    layers = config.compilation_config.static_forward_context
    backends = {layers[name].get_attn_backend().get_name() for name in layer_names}
    if backends != {_CPU}:
        return "+".join(sorted(backends)).lower()
    cache = config.cache_config
    dtype = config.model_config.dtype
    return str(_get_attn_isa(dtype, cache.block_size, head_elements // 2, cache.cache_dtype))


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
    windows: tuple[int, ...] = (0,),
) -> KvLayout:
    """axes: vLLM's name of its layout. The layout's name here is that and the packing's, and whatever else a
    peer must have in common. windows: see KvGeometry.
    Errors: ManifestError for memory or a layout that hand-over cannot address."""
    # Layers that share their KV cache, or are in different groups, show the same memory twice.
    tensors = {tensor.data_ptr(): tensor for tensor in kv_caches.values()}
    views = [_view(tensor) for tensor in tensors.values()]
    sizes = tuple(_block_bytes(view, total_blocks) for view in views)
    kernel_tokens = block_size_tokens // (views[0].shape[0] // total_blocks)
    known = _are_alike(views, len(shard.heads), kernel_tokens, axes)
    if not known:
        _check_whole(views, axes)
    regions, placements = place(views)
    by_tokens = known and bool(packing.parts)
    by_heads = by_tokens or (known and axes.index("H") < axes.index("N"))
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
        placements=placements,
        windows=windows,
    )
    return KvLayout(regions, geometry)


def layer_indices(
    kv_caches: Mapping[str, "torch.Tensor"], group_of: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """The number of each layer, as pushes count them (KvGeometry.pushed_layers). One that shares the KV of an
    earlier one has none. group_of: number of the group; 0 when it is not there."""
    addresses = {tensor.data_ptr(): None for tensor in kv_caches.values()}
    places = {address: index for index, address in enumerate(addresses)}
    numbers: dict[int, str] = {}
    for name, tensor in kv_caches.items():
        number = group_of.get(name, 0) * len(places) + places[tensor.data_ptr()]
        numbers.setdefault(number, name)
    return {name: number for number, name in numbers.items()}


def _view(tensor: "torch.Tensor") -> LayerView:
    blocks, heads, tokens, content = tensor.shape
    element = tensor.element_size()
    storage = tensor.untyped_storage()
    strides = (tensor.stride(0) * element, tensor.stride(1) * element, tensor.stride(2) * element)
    return LayerView(
        tensor.data_ptr(),
        (blocks, heads, tokens),
        strides,
        content * element,
        Region(storage.data_ptr(), storage.nbytes(), _memory(tensor.device)),
    )


def _memory(device: "torch.device") -> Memory:
    if device.type == "cpu":
        return HOST
    if device.type != "cuda":
        raise Conflict.at(f"KV in the memory of {device} is not available yet", "engine.device").as_error()
    return Memory(device.index or 0)


def _are_alike(views: Sequence[LayerView], heads: int, kernel_tokens: int, axes: str) -> bool:
    """Whether it is known for all layers how heads and tokens lie in their blocks."""
    expected = (heads, kernel_tokens, views[0].content_bytes)
    return all(
        (*view.shape[1:], view.content_bytes) == expected and not view.obstacle(axes) for view in views
    )


def _check_whole(views: Sequence[LayerView], axes: str) -> None:
    """Checks that blocks can be copied whole, where it is not known how heads and tokens lie in them."""
    for view in views:
        if not view.is_contiguous_inside:
            message = f"KV layout not supported: {view.obstacle(axes) or f'a view {view.shape} as {axes}'}"
            raise _refusal(message)


def _block_bytes(view: LayerView, total_blocks: int) -> int:
    # Attention kernels may see a block as several smaller ones.
    kernel_blocks, remainder = divmod(view.shape[0], total_blocks)
    if remainder:
        raise _refusal(f"KV layout not supported: {view.shape[0]} kernel blocks for {total_blocks} blocks")
    return view.kernel_block_bytes * kernel_blocks


def _refusal(message: str) -> ManifestError:
    return Conflict((MODEL_SOURCE,), message).as_error()
