"""Our LoRA ops for CPUs against a slow reference: one row at a time."""

import random

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.platforms import current_platform

from llmserve.engines.vllm.cpu_lora import GroupedPunica, rows_by_slot

SLOTS, RANK, INPUTS, WIDTHS = 3, 4, 10, (6, 3)


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([], []),
        ([-1, -1], []),
        ([2, 2, 2], [(2, [0, 1, 2])]),
        ([-1, 1, 1, -1], [(1, [1, 2])]),
        ([0, 1, -1, 0], [(0, [0, 3]), (1, [1])]),
    ],
)
def test_rows_of_each_slot(slots: list[int], expected: list[tuple[int, list[int]]]) -> None:
    every = torch.arange(len(slots))
    found = rows_by_slot(torch.tensor(slots, dtype=torch.long))
    assert [(slot, every[rows].tolist()) for slot, rows in found] == expected


def test_rows_that_follow_each_other_are_not_copied() -> None:
    assert rows_by_slot(torch.tensor([-1, 1, 1, 0])) == [(0, slice(3, 4)), (1, slice(1, 3))]


def _punica(slots: list[int]) -> GroupedPunica:
    """A batch of one token of each request. The adapter in slot i has the number 10 + i; 0 is none."""
    made = GroupedPunica(64, 64, "cpu")
    numbers = tuple(10 + slot if slot >= 0 else 0 for slot in slots)
    mapping = LoRAMapping(numbers, numbers, is_prefill=True)
    made.update_metadata(mapping, [10 + slot for slot in range(SLOTS)], SLOTS + 1, 100)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_each_row_gets_its_own_adapter_and_a_row_without_one_gets_none(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    slots = random.Random(seed).choices(range(-1, SLOTS), k=12)
    x, y = torch.randn(12, INPUTS, dtype=dtype), torch.randn(12, 2 + sum(WIDTHS), dtype=dtype)
    a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS, dtype=dtype) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, dtype=dtype) for width in WIDTHS)
    expected = y.clone()
    for row, slot in enumerate(slots):
        start = 2
        for one_a, one_b, width in zip(a, b, WIDTHS, strict=True):
            if slot >= 0:
                shrunk = 0.5 * one_a[slot, 0].float() @ x[row].float()
                expected[row, start : start + width] += one_b[slot, 0] @ shrunk.to(dtype)
            start += width

    punica, buffer = _punica(slots), tuple(torch.zeros(12, RANK) for _ in WIDTHS)
    punica.add_shrink(buffer, x, a, 0.5)
    punica.add_expand(y, buffer, b, WIDTHS, offset_start=2)
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_a_batch_without_adapters_is_left_as_it_is() -> None:
    y, x = torch.randn(3, WIDTHS[0]), torch.randn(3, INPUTS)
    before = y.clone()
    weights = torch.randn(SLOTS, 1, RANK, INPUTS), torch.randn(SLOTS, 1, WIDTHS[0], RANK)
    _punica([-1, -1, -1]).add_lora_linear(y, x, (weights[0],), (weights[1],), 1.0, WIDTHS[:1])
    assert torch.equal(y, before)
    _punica([-1, 0, -1]).add_lora_linear(y, x, (weights[0],), (weights[1],), 1.0, WIDTHS[:1])
    assert torch.equal(y[::2], before[::2])
    assert not torch.equal(y[1], before[1])


def test_vllm_takes_the_ops_for_cpus_from_where_ours_are_put() -> None:
    assert current_platform.get_punica_wrapper() == "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
