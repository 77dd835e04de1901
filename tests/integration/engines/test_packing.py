"""What packing.py says of vLLM's CPU kernels, held against what they do: they write tokens whose numbers can
be read back from the bytes."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from vllm import _custom_ops as ops

from llmserve.engines.connector.memory import Packing, packing_of

HEAD = 64
DIGIT = 8  # float8 has all integers below 16
CACHES = {"auto": (torch.bfloat16, torch.bfloat16), "fp8": (torch.uint8, torch.float8_e4m3fn)}


def written(isa: str, tokens: int, cache: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each element of a block of one head: the token and the element whose K or V lies there."""
    numbers = torch.arange(2 * tokens * HEAD).reshape(2, tokens, 1, HEAD)
    found, place = np.zeros(2 * tokens * HEAD, np.int64), 1
    while place <= int(numbers.max()):
        digits = (numbers // place % DIGIT).to(torch.bfloat16)
        found += place * _stored(isa, digits, cache)
        place *= DIGIT
    token = found // HEAD % tokens
    return token, found % HEAD + HEAD * (found // (tokens * HEAD))


def _stored(isa: str, values: torch.Tensor, cache: str) -> npt.NDArray[np.int64]:
    tokens = values.shape[1]
    storage, dtype = CACHES[cache]
    block = torch.zeros(1, 1, tokens, 2 * HEAD, dtype=storage)
    keys, content = block.view(1, 1, 2 * tokens, HEAD).chunk(2, dim=2)  # as CPUAttentionBackendImpl does
    key, value = values[0].contiguous(), values[1].contiguous()
    ops.cpu_attn_reshape_and_cache(
        key, value, keys, content, torch.arange(tokens), isa, 1.0, 1.0, kv_cache_dtype=cache
    )
    stored: npt.NDArray[np.int64] = block.view(dtype).to(torch.float32).numpy().ravel().astype(np.int64)
    return stored


def groups(packing: Packing, tokens: int, element_bytes: int) -> Iterator[tuple[int, int, slice]]:
    """Of each row of each part: row, first token, elements."""
    start = row = 0
    for part in packing.parts:
        size = part.group_bytes // element_bytes
        for _ in range(part.rows):
            for first in range(0, tokens, part.group_tokens):
                yield row, first, slice(start, start + size)
                start += size
            row += 1
    assert start == 2 * HEAD * tokens


@pytest.mark.parametrize("tokens", [32, 64, 128])
@pytest.mark.parametrize(
    ("isa", "cache"), [("vec", "auto"), ("vec", "fp8"), ("vec16", "auto"), ("amx", "auto"), ("amx", "fp8")]
)
def test_a_group_holds_the_same_of_each_of_its_tokens(isa: str, cache: str, tokens: int) -> None:
    element_bytes = CACHES[cache][0].itemsize
    token, element = written(isa, tokens, cache)
    assert len(set(zip(token.tolist(), element.tolist(), strict=True))) == len(token), "each lies once"
    packing = packing_of(isa, 2 * HEAD, element_bytes)
    patterns: dict[int, tuple[list[int], list[int]]] = {}
    for row, first, elements in groups(packing, tokens, element_bytes):
        pattern = ((token[elements] - first).tolist(), element[elements].tolist())
        assert patterns.setdefault(row, pattern) == pattern, "in the same order in every group"


def test_the_names_tell_packings_apart() -> None:
    names = {
        kernel: packing_of(kernel, 128, 2).name for kernel in ("vec", "vec16", "amx", "neon", "flash_attn")
    }
    assert names == {"vec": "vec", "vec16": "vec", "amx": "amx", "neon": "neon", "flash_attn": "kv"}
    assert packing_of("neon", 128, 2).parts == ()
