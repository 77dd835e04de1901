"""Blocks of few layers that look like KV: channels of different size, and some that are zero."""

import numpy as np
import numpy.typing as npt
import pytest

from llmserve.kvstore.formats import BlockShape, Element, shape_of

LAYERS, HEADS, TOKENS, HEAD_SIZE = 3, 2, 32, 16


@pytest.fixture
def shape() -> BlockShape:
    return shape_of(
        "LBHNC/vec", Element.BFLOAT16, layers=LAYERS, heads=HEADS, tokens=TOKENS, head_size=HEAD_SIZE
    )


@pytest.fixture
def block(shape: BlockShape) -> npt.NDArray[np.uint16]:
    """bfloat16 bits."""
    random = np.random.default_rng(5)
    numbers = random.normal(size=(LAYERS * HEADS, 2, HEAD_SIZE * TOKENS)).astype(np.float32)
    numbers *= np.exp(random.normal(size=(LAYERS * HEADS, 2, 1))).astype(np.float32)
    numbers[0, 0, :TOKENS] = 0
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).ravel()
