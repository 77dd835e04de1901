"""How vLLM verifies proposed tokens on a CPU without Triton.

It needs the temperature, top_k and top_p of a request once for each of its tokens (expand_batch_to_tokens in
v1/sample/rejection_sampler.py). vLLM's op for CPUs makes whole numbers of them, and writes them into a copy
(_expand_kernel_impl in utils/cpu_triton_utils.py): tokens are then sampled by what was in memory before, and
a request with a top_k ends the engine. So does a step in which requests with a top_k have no proposals, since
the largest top_k of none is asked for (apply_top_k_only in v1/sample/ops/topk_topp_sampler.py). `install`
replaces both in an engine's process.
"""

from types import ModuleType
from typing import Any

import torch


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: float = 0,
    replace_to: float = 0,
) -> torch.Tensor:
    """Returns x[i] for each token of request i, [num_tokens]. x: [requests]. cu_num_tokens: [requests], where
    the tokens of each request end. A value that equals replace_from becomes replace_to."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    values = x.masked_fill(x == replace_from, replace_to)
    return values.repeat_interleave(counts, output_size=num_tokens)


def install(device_type: str, rejection_sampler: ModuleType) -> None:
    """Called in the process of an engine that speculates, before its first request. rejection_sampler: vLLM's
    module."""
    from vllm.triton_utils import HAS_TRITON

    if device_type != "cpu" or HAS_TRITON:
        return
    constrained = rejection_sampler.apply_sampling_constraints

    def apply_sampling_constraints(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        """Returns the logits of proposed tokens, [proposals, vocabulary], as they are sampled."""
        return constrained(logits, *others) if len(logits) else logits

    for ours in (apply_sampling_constraints, expand_batch_to_tokens):
        setattr(rejection_sampler, ours.__name__, ours)
