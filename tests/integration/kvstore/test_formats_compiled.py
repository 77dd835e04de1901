"""The kernels of the formats become machine code for GPUs; that needs none."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="no Triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llmserve.kvstore.formats import kernels
from llmserve.kvstore.formats.header import Quantize
from llmserve.kvstore.formats.quantize import LEAST_SCALE, TOP

PLACES = {"token_offsets": "*i64", "channel_offsets": "*i64"}
SIZES = dict.fromkeys(("token_count", "channel_count", "start", "stride", "scale_start"), "i32")


def machine_code(kernel: Any, capability: int, pointers: dict[str, str], constants: dict[str, Any]) -> bytes:
    signature = {**pointers, **PLACES, **SIZES, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    return bytes(built.asm["cubin"])


@pytest.mark.parametrize("grid", [Quantize.INT8, Quantize.FP8])
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile(
    capability: int, grid: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = {"token_block": 128, "channel_block": 32, "is_fp8": grid is Quantize.FP8, "is_bfloat16": True}
    bounds = {"top": TOP[grid], "least": LEAST_SCALE, "largest": 2.0**120}
    pointers = {"values": "*i16", "codes": "*u8", "scales": "*i16"}
    assert machine_code(kernels.dequantize_kernel, capability, pointers, tile)
    refused = {**pointers, "refused": "*i32"}
    assert machine_code(kernels.quantize_kernel, capability, refused, {**tile, **bounds})
    assert list(tmp_path.iterdir()), "the cache is where it can be removed"
