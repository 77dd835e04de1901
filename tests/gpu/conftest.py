"""Where these tests run: on a GPU; with TRITON_INTERPRET=1, Triton's kernels also on CPU tensors."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("no GPU at hand, and TRITON_INTERPRET is not set")
