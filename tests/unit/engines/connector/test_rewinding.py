import pytest
import torch

from llmserve.engines.connector.rewinding import RewindingGenerator, install


def _draw(generator: torch.Generator) -> list[float]:
    return list(torch.empty(4).exponential_(generator=generator).tolist())


def test_torch_s_own_cannot_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="does not use offset"):
        torch.Generator(device="cpu").get_offset()


def test_a_draw_that_is_taken_back_comes_again() -> None:
    plain = torch.Generator(device="cpu").manual_seed(7)
    rewinding = RewindingGenerator(device="cpu").manual_seed(7)
    first = _draw(plain)
    for _ in range(3):
        assert _draw(rewinding) == first
        rewinding.set_offset(rewinding.get_offset() - 4)  # as vLLM does
    assert _draw(rewinding) == first
    assert _draw(rewinding) == _draw(plain)


def test_only_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", torch.Generator)
    install("cuda")
    assert torch.Generator is not RewindingGenerator
    install("cpu")
    assert torch.Generator is RewindingGenerator
