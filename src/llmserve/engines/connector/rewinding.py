"""Random generators on the CPU that can take a draw back.

vLLM computes long prompts in pieces, samples after each, and throws away all but the last sample. It takes
the draw of a request with a seed back, by the generator's offset (gpu_model_runner's _bookkeeping_sync).
Generators on CPU have none: torch raises, and the engine ends, with all that runs there.

`install` replaces torch.Generator in an engine's process on CPU. It first checks that torch and vLLM are as
this file takes them to be, and lets no engine start that a request with a seed could end.
"""

import torch

from llmserve.core.errors import ManifestError

# How vLLM's model runner makes the generator of a request, and takes a draw back.
_WRITTEN = ("torch.Generator(device=self.device)", "gen.set_offset(gen.get_offset() - 4)")


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


def install(device_type: str, runner_source: str) -> None:
    """Called in the process of an engine, before its first request. runner_source: text of vLLM's
    gpu_model_runner. A torch whose own generators rewind is left as it is. Errors: ManifestError."""
    if device_type != "cpu" or _rewinds(torch.Generator):
        return
    if not _rewinds(RewindingGenerator):
        raise _refusal(f"torch {torch.__version__} does not draw from a generator class of ours")
    if missing := [line for line in _WRITTEN if line not in runner_source]:
        raise _refusal(f"vLLM's model runner has no line {missing[0]!r} any more")
    torch.Generator = RewindingGenerator


def _rewinds(kind: type[torch.Generator]) -> bool:
    """Whether such a generator, asked as vLLM asks it, draws the same twice."""
    generator = kind(device="cpu")
    generator.manual_seed(7)
    try:
        first = torch.rand(4, generator=generator)
        generator.set_offset(generator.get_offset() - 4)
        return bool(torch.equal(first, torch.rand(4, generator=generator)))
    except (RuntimeError, TypeError):
        return False


def _refusal(reason: str) -> ManifestError:
    message = f"on CPU, a request with a seed would end the engine, because {reason}"
    advice = "install vLLM and torch in the versions that llmserve requires"
    return ManifestError(f"{message}; {advice}", key=("engine",))
