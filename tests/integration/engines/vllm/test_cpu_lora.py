"""Our LoRA ops for CPUs against a slow reference: one row at a time."""

import random

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.platforms import current_platform

from llmserve.engines.vllm.cpu_lora import GroupedPunica, ModuleWeights, rows_by_slot

SLOTS, RANK, INPUTS, WIDTHS = 3, 4, 10, (6, 3, 5)
Stacked = tuple[torch.Tensor, ...]


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


def _stacked(dtype: torch.dtype = torch.float32) -> tuple[Stacked, Stacked]:
    """Weights of adapters in all slots, of a module of three slices."""
    a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS, dtype=dtype) for _ in WIDTHS)
    return a, tuple(torch.randn(SLOTS, 1, width, RANK, dtype=dtype) for width in WIDTHS)


def _batch(punica: GroupedPunica, slots: list[int], numbers: tuple[int, ...] = (10, 11, 12)) -> None:
    """Begins a step of one token of each request. numbers: of the adapters in the slots."""
    asked = tuple(numbers[slot] if slot >= 0 else 0 for slot in slots)
    punica.update_metadata(LoRAMapping(asked, asked, is_prefill=True), list(numbers), SLOTS + 1, 100)


def _added(punica: GroupedPunica, x: torch.Tensor, a: Stacked, b: Stacked) -> torch.Tensor:
    y = torch.zeros(len(x), sum(WIDTHS), dtype=x.dtype)
    punica.add_lora_linear(y, x, a, b, 1.0, WIDTHS)
    return y


@pytest.fixture
def punica() -> GroupedPunica:
    return GroupedPunica(64, 64, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_each_row_gets_its_own_adapter_and_a_row_without_one_gets_none(
    punica: GroupedPunica, seed: int, dtype: torch.dtype
) -> None:
    """Of the adapters, one has a smaller rank, and one lacks the slice in the middle."""
    torch.manual_seed(seed)
    slots = random.Random(seed).choices(range(-1, SLOTS), k=12)
    x, y = torch.randn(12, INPUTS, dtype=dtype), torch.randn(12, sum(WIDTHS), dtype=dtype)
    a, b = _stacked(dtype)
    for one_a, one_b in zip(a, b, strict=True):
        one_a[0, 0, 2:] = one_b[0, 0, :, 2:] = 0
    a[1][1] = b[1][1] = 0
    expected = y.float()
    for row, slot in enumerate(slots):
        if slot >= 0:
            both = zip(a, b, strict=True)
            shrunk = (
                (one_a[slot, 0].float() @ x[row].float(), one_b[slot, 0].float()) for one_a, one_b in both
            )
            expected[row] += 0.5 * torch.cat([one_b @ few for few, one_b in shrunk])

    _batch(punica, slots)
    punica.add_lora_linear(y, x, a, b, 0.5, WIDTHS)
    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    without = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[without].float(), expected[without])


def test_nothing_is_multiplied_that_an_adapter_does_not_have() -> None:
    a, b = _stacked()
    a[0][1, 0, 1:] = 0
    a[1][1] = 0
    weights = ModuleWeights.read(1, a, b)
    assert weights.a.shape == (1 + RANK, INPUTS)
    assert [(one.output, one.shrunk) for one in weights.expansions] == [
        (slice(0, 6), slice(0, 1)),
        (slice(9, 14), slice(1, 1 + RANK)),
    ]
    a[0][1] = a[2][1] = 0
    assert ModuleWeights.read(1, a, b).expansions == []


def test_a_row_of_zeros_within_the_rank_is_no_end() -> None:
    a, b = _stacked()
    a[0][0, 0, 1] = 0
    assert ModuleWeights.read(0, a[:1], b[:1]).a.shape == (RANK, INPUTS)


def test_a_number_that_is_none_is_no_zero() -> None:
    a, b = _stacked()
    a[0][0] = 0
    a[0][0, 0, 2, 3] = float("nan")
    assert ModuleWeights.read(0, a[:1], b[:1]).a.shape == (3, INPUTS)


def test_an_adapter_is_read_once_and_another_one_in_its_slot_again(punica: GroupedPunica) -> None:
    x, (a, b) = torch.randn(2, INPUTS), _stacked()
    _batch(punica, [0, 0])
    first = _added(punica, x, a, b)
    a[0][0] *= 2
    _batch(punica, [0, 0])
    assert torch.equal(_added(punica, x, a, b), first)
    _batch(punica, [0, 0], (13, 11, 12))
    doubled = torch.cat([2 * first[:, : WIDTHS[0]], first[:, WIDTHS[0] :]], dim=1)
    torch.testing.assert_close(_added(punica, x, a, b), doubled)
    _batch(punica, [0, 0])  # its number is back, and what was read of it was forgotten when it left
    torch.testing.assert_close(_added(punica, x, a, b), doubled)


def test_a_batch_without_adapters_is_left_as_it_is(punica: GroupedPunica) -> None:
    x, (a, b) = torch.randn(3, INPUTS), _stacked()
    _batch(punica, [-1, -1, -1])
    assert not _added(punica, x, a, b).any()


def test_vllm_takes_the_ops_for_cpus_from_where_ours_are_put() -> None:
    assert current_platform.get_punica_wrapper() == "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
