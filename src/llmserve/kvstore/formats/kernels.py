"""The Triton kernels of `gpu`: one program for some channels of one repeat, all tokens.

A part may be packed in any way: its elements are found by two tables of offsets, of tokens and of channels.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _places(  # type: ignore[no-untyped-def]
    token_offsets, channel_offsets, token_count, channel_count, start, stride, scale_start,
    token_block: tl.constexpr, channel_block: tl.constexpr,
):  # fmt: skip
    """Finds the elements and scales of this program's tile, and which of them exist."""
    repeat = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, token_block)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    has_channel = channel < channel_count
    token_at = tl.load(token_offsets + token, mask=token < token_count, other=0)
    channel_at = tl.load(channel_offsets + channel, mask=has_channel, other=0)
    places = start + repeat * stride + token_at[:, None] + channel_at[None, :]
    exists = (token < token_count)[:, None] & has_channel[None, :]
    return places, exists, scale_start + repeat * channel_count + channel, has_channel


@triton.jit  # type: ignore[untyped-decorator]
def quantize_kernel(  # type: ignore[no-untyped-def]
    values, codes, scales, refused,
    token_offsets, channel_offsets, token_count, channel_count, start, stride, scale_start,
    token_block: tl.constexpr, channel_block: tl.constexpr,
    top: tl.constexpr, least: tl.constexpr, largest: tl.constexpr,
    is_fp8: tl.constexpr, is_bfloat16: tl.constexpr,
):  # fmt: skip
    places, exists, scale_places, has_scale = _places(
        token_offsets, channel_offsets, token_count, channel_count, start, stride, scale_start,
        token_block, channel_block,
    )  # fmt: skip
    numbers = tl.load(values + places, mask=exists, other=0)
    if is_bfloat16:
        numbers = (numbers.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        numbers = numbers.to(tl.float32)
    magnitudes = tl.abs(numbers)
    carried = magnitudes <= largest  # not so: infinities and NaN too
    tl.atomic_max(refused, tl.max(tl.max(tl.where(carried, 0, 1), axis=1), axis=0))
    numbers, magnitudes = tl.where(carried, numbers, 0.0), tl.where(carried, magnitudes, 0.0)
    tops = tl.max(magnitudes, axis=0)
    steps = tl.maximum(tl.div_rn(tops, top), least).to(tl.uint32, bitcast=True)
    steps = (steps + 0xFFFF) & 0xFFFF0000  # bfloat16, rounded up
    tl.store(scales + scale_places, (steps >> 16).to(tl.int16), mask=has_scale)
    numbers = numbers * tl.div_rn(1.0, steps.to(tl.float32, bitcast=True))[None, :]
    if is_fp8:  # noqa: SIM108 - not a choice of values: the other branch is not compiled
        found = _to_e4m3(numbers)
    else:
        found = _to_int8(numbers)
    tl.store(codes + places, found.to(tl.uint8), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def dequantize_kernel(  # type: ignore[no-untyped-def]
    values, codes, scales,
    token_offsets, channel_offsets, token_count, channel_count, start, stride, scale_start,
    token_block: tl.constexpr, channel_block: tl.constexpr, is_fp8: tl.constexpr, is_bfloat16: tl.constexpr,
):  # fmt: skip
    places, exists, scale_places, has_scale = _places(
        token_offsets, channel_offsets, token_count, channel_count, start, stride, scale_start,
        token_block, channel_block,
    )  # fmt: skip
    steps = tl.load(scales + scale_places, mask=has_scale, other=0).to(tl.uint32) << 16
    found = tl.load(codes + places, mask=exists, other=0)
    if is_fp8:  # noqa: SIM108
        numbers = _from_e4m3(found.to(tl.uint32))
    else:
        numbers = found.to(tl.int8, bitcast=True).to(tl.float32)
    numbers = numbers * steps.to(tl.float32, bitcast=True)[None, :]
    if is_bfloat16:
        bits = numbers.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(values + places, bits.to(tl.int16), mask=exists)
    else:
        tl.store(values + places, numbers.to(values.dtype.element_ty), mask=exists)


@triton.jit
def _to_int8(numbers):  # type: ignore[no-untyped-def]
    """Adding 1.5 * 2**23 leaves the integer in the low bits, rounded to nearest, ties to even."""
    return (numbers + 12582912.0).to(tl.uint32, bitcast=True)


@triton.jit
def _to_e4m3(numbers):  # type: ignore[no-untyped-def]
    """Below 2**-6 codes are steps of 2**-9. No denormal float32 is needed: some GPUs drop them."""
    bits = numbers.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits = bits & 0x7FFFFFFF
    magnitudes = bits.to(tl.float32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    tiny = _to_int8(magnitudes * 512.0) & 0x7F
    return tl.where(magnitudes < 0.015625, tiny, normal) | sign


@triton.jit
def _from_e4m3(codes):  # type: ignore[no-untyped-def]
    magnitude = codes & 0x7F
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    tiny = magnitude.to(tl.float32) / 512.0
    numbers = tl.where(magnitude < 8, tiny, normal)
    return tl.where(codes > 0x7F, -numbers, numbers)
