"""Our LoRA ops for CPUs against a slow reference: one row at a time."""

import random
from types import SimpleNamespace

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import AdapterLRUCache
from vllm.platforms import current_platform

from llmserve.engines.vllm.cpu_lora import GroupedPunica, ModuleWeights, ReadingLoraManager, rows_by_slot

SLOTS, RANK, INPUTS, WIDTHS = 3, 4, 10, (6, 3, 5)
NUMBERS = (10, 11, 12)  # vLLM's, of the adapters in the slots
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


def _load(punica: GroupedPunica, a: Stacked, b: Stacked) -> None:
    """Reads the adapters of a module's slots, as ReadingLoraManager does for all modules."""
    punica.adapters = {number: {a[0]: ModuleWeights.read(slot, a, b)} for slot, number in enumerate(NUMBERS)}


def _batch(punica: GroupedPunica, slots: list[int]) -> None:
    """Begins a step of one token of each request."""
    asked = tuple(NUMBERS[slot] if slot >= 0 else 0 for slot in slots)
    punica.update_metadata(LoRAMapping(asked, asked, is_prefill=True), list(NUMBERS), SLOTS + 1, 100)


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

    _load(punica, a, b)
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


def test_the_first_step_of_an_adapter_reads_nothing(
    punica: GroupedPunica, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, (a, b) = torch.randn(2, INPUTS), _stacked()
    _load(punica, a, b)
    monkeypatch.setattr(ModuleWeights, "read", None)
    _batch(punica, [0, 0])
    assert _added(punica, x, a, b).any()


class Layer(BaseLinearLayerWithLoRA):  # type: ignore[misc]  # untyped there
    """A layer with the slots of `_stacked`. vLLM's manager puts an adapter into a slot by `set_lora`."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.lora_a_stacked, self.lora_b_stacked = _stacked()

    def set_lora(self, index: int, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        self.lora_a_stacked[0][index] = lora_a
        self.lora_b_stacked[0][index] = lora_b


class Embedding(torch.nn.Module):  # type: ignore[misc]  # untyped there
    """Has ops of its own."""

    def set_lora(self, index: int, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        """There is nothing to keep."""


@pytest.fixture
def manager(punica: GroupedPunica, monkeypatch: pytest.MonkeyPatch) -> ReadingLoraManager:
    """Has all that vLLM's manager needs to put adapter 13 into a slot."""
    manager = ReadingLoraManager.__new__(ReadingLoraManager)
    manager.lora_config = SimpleNamespace(max_loras=SLOTS)
    manager.lora_index_to_id = [7, None, None]
    manager.punica_wrapper_mapping = {"language": punica}
    manager.modules = {"qkv_proj": Layer(), "embed_tokens": Embedding()}
    manager._active_adapters = AdapterLRUCache(SLOTS, manager._deactivate_adapter)
    manager._registered_adapters = {13: SimpleNamespace(id=13)}
    weights = SimpleNamespace(lora_a=torch.full((RANK, INPUTS), 13.0), lora_b=torch.ones(WIDTHS[0], RANK))
    monkeypatch.setattr(ReadingLoraManager, "_get_lora_layer_weights", lambda *_: weights)
    return manager


def test_an_adapter_is_read_when_it_comes_into_its_slot_and_forgotten_when_it_leaves(
    manager: ReadingLoraManager, punica: GroupedPunica
) -> None:
    key = manager.modules["qkv_proj"].lora_a_stacked[0]
    assert manager.activate_adapter(13)
    assert manager.lora_index_to_id == [7, 13, None]
    assert punica.adapters[13].keys() == {key}
    read = punica.adapters[13][key]
    assert (read.a[:RANK] == 13.0).all()
    assert not manager.activate_adapter(13)
    assert punica.adapters[13][key] is read, "it was there already"
    manager.deactivate_adapter(13)
    assert punica.adapters == {}


def test_a_batch_without_adapters_is_left_as_it_is(punica: GroupedPunica) -> None:
    x, (a, b) = torch.randn(3, INPUTS), _stacked()
    _batch(punica, [-1, -1, -1])
    assert not _added(punica, x, a, b).any()


def test_vllm_takes_the_ops_for_cpus_from_where_ours_are_put() -> None:
    assert current_platform.get_punica_wrapper() == "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
