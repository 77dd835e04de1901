"""The kernel that copies small pieces, on a GPU between device and pinned memory, else on host memory."""

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="no Triton")

from llmserve.transfer.devices.kernels import copy_pieces  # noqa: E402 - not without Triton

SIZE = 256 << 10


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("count", [1, 2, 37])
@pytest.mark.parametrize("unit", [1, 8])
def test_copies_each_piece_and_nothing_else(
    device: torch.device, gathers: bool, count: int, unit: int
) -> None:
    random = np.random.default_rng([count, unit])
    there = torch.from_numpy(random.integers(0, 256, SIZE, np.uint8)).to(device)
    here = torch.from_numpy(random.integers(0, 256, SIZE, np.uint8))
    here = here.pin_memory() if device.type == "cuda" else here
    source, target = (there, here) if gathers else (here, there)
    room = SIZE // count // unit * unit
    lengths = random.integers(0, room // unit, count) * unit
    begins, ends = (random.permutation(count) * room for _ in range(2))
    expected = target.cpu().numpy().copy()
    for come_from, to, length in zip(begins, ends, lengths, strict=True):
        expected[to : to + length] = source.cpu().numpy()[come_from : come_from + length]
    table = np.stack((source.data_ptr() + begins, target.data_ptr() + ends, lengths)).astype(np.int64)
    copy_pieces(torch.from_numpy(table).to(device), int(lengths.max()), aligned=unit == 8)
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert np.array_equal(target.cpu().numpy(), expected)
