"""LoRA on CPUs.

vLLM's ops for CPUs (vllm/lora/ops/torch_ops/lora_ops.py) index the slots with -1 for a row without an
adapter: the row gets the last slot's adapter, which may be another tenant's (vllm#48421). They also copy an
adapter's weights for each row, and multiply by the zeros of modules that the adapter does not change. Here,
each adapter's rows are multiplied at once, by what the adapter has, and rows without one by nothing. Which
rows are whose is found once in a step; what an adapter has, once it is in its slot, before any step needs it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from llmserve.engines.vllm.cpu_worker import CpuWorker

Stacked = tuple[torch.Tensor, ...]
SlotRows = Sequence[tuple[int, slice | torch.Tensor]]


def rows_by_slot(slots: torch.Tensor) -> SlotRows:
    """Returns the rows of each slot. slots: int64 [rows]; a negative one is that of a row without an adapter,
    which is left out. Rows that follow each other are a slice, which selects without a copy."""
    found: list[tuple[int, slice | torch.Tensor]] = []
    for slot in slots.unique().tolist():
        if slot < 0:
            continue
        rows = (slots == slot).nonzero().flatten()
        first, end = int(rows[0]), int(rows[-1]) + 1
        found.append((slot, slice(first, end) if end - first == len(rows) else rows))
    return found


@dataclass(frozen=True, slots=True)
class Expansion:
    """b: [rank, width], for the columns of the output and of the shrunk rows that a slice has."""

    output: slice
    shrunk: slice
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class ModuleWeights:
    """What one adapter adds to a module that may be several in one (q, k and v). a: those of its slices, one
    after another: [ranks, in]. Slices that it does not change are not in it."""

    a: torch.Tensor
    expansions: Sequence[Expansion]

    @classmethod
    def read(cls, slot: int, a: Stacked, b: Stacked) -> Self:
        """Reads a slot. a, b: of each slice [slots, 1, max_rank, in] and [slots, 1, width, max_rank]. Rows of
        A that are zero, as behind the rank of an adapter, add nothing."""
        column, ranks, parts, expansions = 0, 0, [a[0][slot, 0, :0]], []
        for one_a, one_b in zip(a, b, strict=True):
            used = one_a[slot, 0].any(dim=1).nonzero()
            rank, width = int(used[-1]) + 1 if len(used) else 0, one_b.shape[2]
            if rank:
                output, shrunk = slice(column, column + width), slice(ranks, ranks + rank)
                expansions.append(Expansion(output, shrunk, one_b[slot, 0, :, :rank].T))
                parts.append(one_a[slot, 0, :rank])
            column, ranks = column + width, ranks + rank
        return cls(torch.cat(parts), expansions)

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        """Adds x @ A.T @ B.T * scale to y. The shrunk rows are of the model's element type, as in PEFT."""
        shrunk = x @ self.a.T
        for one in self.expansions:
            y[:, one.output].addmm_(shrunk[:, one.shrunk], one.b, alpha=scale)


# What an adapter adds to each module, by the module's slots for A of its first slice.
AdapterWeights = Mapping[torch.Tensor, ModuleWeights]


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of an adapter in a step, and what it adds to them."""

    rows: slice | torch.Tensor
    modules: AdapterWeights

    def add(self, y: torch.Tensor, x: torch.Tensor, a: Stacked, scale: float) -> None:
        weights = self.modules[a[0]]
        if not weights.expansions:
            return
        changed = y[self.rows]
        weights.add(changed, x[self.rows], scale)
        if not isinstance(self.rows, slice):
            y[self.rows] = changed  # it was a copy


class GroupedPunica(PunicaWrapperCPU):
    """What vLLM's layers with LoRA call in each step. Embeddings, lm_head and layers with
    `fully_sharded_loras` have ops of their own, which are not replaced: `config/schema/lora.py` and
    `engines/vllm/args.py` let no engine use them. adapters: what those in the slots have, by vLLM's number of
    each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapters: dict[int, AdapterWeights] = {}
        self._step: Sequence[AdapterRows] = ()

    def update_metadata(
        self, mapping: LoRAMapping, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any
    ) -> None:
        """vLLM calls this before each step that differs from the one before in its rows or in the slots."""
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        numbered = [(lora_index_to_id[slot], rows) for slot, rows in rows_by_slot(self.token_lora_indices)]
        self._step = [
            AdapterRows(rows, self.adapters[number]) for number, rows in numbered if number is not None
        ]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Adds x @ A.T @ B.T * scale of each row's adapter to y, for each slice of its columns. y:
        [rows, sum of output_slices]; x: [rows, in]; lora_a_stacked: of each slice [slots, 1, max_rank, in];
        lora_b_stacked: of each slice [slots, 1, width, max_rank]."""
        for one in self._step:
            one.add(y, x, lora_a_stacked, scale)


class ReadingLoraManager(LRUCacheLoRAModelManager):
    """vLLM's manager of the slots, which reads what an adapter has when it comes into its slot."""

    def activate_adapter(self, lora_id: int) -> bool:
        is_new: bool = super().activate_adapter(lora_id)
        if is_new:
            slot = self.lora_index_to_id.index(lora_id)
            layers = (one for one in self.modules.values() if isinstance(one, BaseLinearLayerWithLoRA))
            stacks = [(layer.lora_a_stacked, layer.lora_b_stacked) for layer in layers]
            weights = {a[0]: ModuleWeights.read(slot, a, b) for a, b in stacks}
            for punica in self.punica_wrapper_mapping.values():
                punica.adapters[lora_id] = weights
        return is_new

    def _deactivate_adapter(self, lora_id: int) -> None:
        super()._deactivate_adapter(lora_id)
        for punica in self.punica_wrapper_mapping.values():
            punica.adapters.pop(lora_id, None)


class CpuLoraWorker(CpuWorker):
    """vLLM's worker for CPUs, which loads a model with these ops (AsyncEngineArgs.worker_cls)."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        punica_cpu.PunicaWrapperCPU = GroupedPunica  # the platform names it by its module
        LRUCacheWorkerLoRAManager._manager_cls = ReadingLoraManager
        super().load_model(*args, **kwargs)
