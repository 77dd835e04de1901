"""The shapes of packings.py, held against where vLLM's CPU kernels write tokens."""

import numpy as np
import pytest

from llmserve.kvstore.formats import Element, shape_of
from llmserve.kvstore.formats.shape import Slab
from tests.integration.engines.test_packing import HEAD, written


def channels_of(slab: Slab) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """For each element of a part: the number of its channel."""
    kept = [1 if axis in slab.part.token_axes else size for axis, size in enumerate(slab.part.sizes)]
    numbers = np.arange(slab.part.channels).reshape(kept)
    return np.broadcast_to(numbers, slab.part.sizes).ravel()


@pytest.mark.parametrize("tokens", [32, 128])
@pytest.mark.parametrize("isa", ["vec", "vec16", "amx"])
def test_a_scale_belongs_to_one_channel_and_to_all_its_tokens(isa: str, tokens: int) -> None:
    packing = isa.removesuffix("16")
    shape = shape_of(f"LBHNC/{packing}", Element.BFLOAT16, layers=1, heads=1, tokens=tokens, head_size=HEAD)
    token, element = written(isa, tokens, "auto")
    seen: set[int] = set()
    for slab in shape.slabs():
        part = slice(slab.offset, slab.offset + slab.part.elements)
        for channel in range(slab.part.channels):
            mine = channels_of(slab) == channel
            (found,) = set(element[part][mine].tolist())
            assert sorted(token[part][mine].tolist()) == list(range(tokens))
            seen.add(found)
    assert len(seen) == 2 * HEAD
