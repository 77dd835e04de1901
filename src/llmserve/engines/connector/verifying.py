"""How vLLM verifies proposed tokens on a CPU without Triton.

It needs the temperature, top_k and top_p of a request once for each of its tokens (expand_batch_to_tokens in
v1/sample/rejection_sampler.py). vLLM's op for CPUs makes whole numbers of them, and writes them into a copy
(_expand_kernel_impl in utils/cpu_triton_utils.py): tokens are then sampled by what was in memory before, and
a request with a top_k ends the engine. `install` replaces the function in an engine's process.
"""

from types import ModuleType

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

    if device_type == "cpu" and not HAS_TRITON:
        assert hasattr(rejection_sampler, expand_batch_to_tokens.__name__), "vLLM verifies in another way"
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens  # type: ignore[attr-defined]
