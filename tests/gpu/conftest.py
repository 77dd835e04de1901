"""Where these tests run: on a GPU; with TRITON_INTERPRET=1, Triton's kernels also on CPU tensors."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.conformance.transport_ends import far, mortal, near, own_near, peer, shared_near, usable
from tests.conformance.transport_peer import KINDS

__all__ = ["far", "mortal", "near", "own_near", "peer", "shared_near"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("no GPU at hand, and TRITON_INTERPRET is not set")


@pytest.fixture(scope="session", params=[name for name in KINDS if KINDS[name].on_gpu])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from usable(request.param)
