"""How vLLM's attention kernels pack the tokens of a block.

The layout's name says where blocks, heads and tokens lie; what a kernel makes of the last axes is its own
affair: on CPU each instruction set transposes or interleaves tokens differently. Equal names of a packing
mean equal bytes. tests/integration/engines/test_packing.py lets vLLM's kernels write tokens and looks where
they land.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from llmserve.engines.kv_transfer import KvPart

if TYPE_CHECKING:
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
