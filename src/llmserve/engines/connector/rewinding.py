"""Random generators on the CPU that can take a draw back.

vLLM computes long prompts in pieces, samples after each, and throws away all but the last sample. It takes
the draw of a request with a seed back, by the generator's offset (gpu_model_runner's _bookkeeping_sync).
Generators on CPU have none: torch raises, and the engine ends, with all that runs there.
"""

import torch


class RewindingGenerator(torch.Generator):
    """Any offset but the present one is that of the seed. While a prompt is computed that is exact: nothing
    of the answer is drawn yet. A request that is computed again after a preemption draws from its seed again:
    as good a sample, but not the one that it would have been."""

    _seeded: torch.Tensor

    def manual_seed(self, seed: int) -> "RewindingGenerator":
        super().manual_seed(seed)
        self._seeded = self.get_state()
        return self

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        self.set_state(self._seeded)


def install(device_type: str) -> None:
    """In the process of an engine, before its first request."""
    if device_type == "cpu":
        torch.Generator = RewindingGenerator
