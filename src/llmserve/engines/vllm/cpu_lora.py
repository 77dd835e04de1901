"""LoRA on CPUs.

vLLM's ops for CPUs (vllm/lora/ops/torch_ops/lora_ops.py) index the slots with -1 for a row without an
adapter: the row gets the last slot's adapter, which may be another tenant's (vllm#48421). They also copy an
adapter's weights for each row. Here, each adapter's rows are multiplied at once, and rows without an adapter
by nothing. Which rows are whose is found once in a step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.v1.worker.cpu_worker import CPUWorker

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


class GroupedPunica(PunicaWrapperCPU):
    """What vLLM's layers with LoRA call in each step. Embeddings and lm_head have ops of their own, which are
    not replaced: `config/schema/lora.py` lets no engine adapt them."""

    _rows: SlotRows = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._rows = rows_by_slot(self.token_lora_indices)

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> None:
        """Without an adapter in the batch there is nothing to add."""
        if self._rows:
            super().add_lora_linear(*args, **kwargs)

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Sets y[i] = x @ A[i].T * scale in the rows with an adapter. y: of each slice [rows, rank]; x:
        [rows, in]; lora_a_stacked: of each slice [slots, 1, rank, in]."""
        x = x.view(-1, x.shape[-1])
        for out, stacked in zip(y, lora_a_stacked, strict=True):
            for slot, rows in self._rows:
                a = stacked[slot, 0].to(out.dtype)
                out[rows, : len(a)] = x[rows].to(out.dtype) @ a.T * scale

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Adds x[i] @ B[i].T to the columns of slice i of y. y: [rows, out]; x: of each slice [rows, rank];
        lora_b_stacked: of each slice [slots, 1, output_slices[i], rank]; the slices begin at column
        offset_start."""
        assert add_inputs, "only layers with two CUDA streams do not add"
        y = y.view(-1, y.shape[-1])
        start = offset_start
        for shrunk, stacked, width in zip(x, lora_b_stacked, output_slices, strict=True):
            for slot, rows in self._rows:
                b = stacked[slot, 0].to(shrunk.dtype)
                y[rows, start : start + width] += (shrunk[rows] @ b.T).to(y.dtype)
            start += width


class CpuLoraWorker(CPUWorker):
    """vLLM's worker for CPUs, which loads a model with these ops (AsyncEngineArgs.worker_cls)."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        punica_cpu.PunicaWrapperCPU = GroupedPunica  # the platform names it by its module
        super().load_model(*args, **kwargs)
