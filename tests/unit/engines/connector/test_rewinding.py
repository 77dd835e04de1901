import pytest
import torch

from llmserve.core.errors import ManifestError
from llmserve.engines.connector.rewinding import RewindingGenerator, install

RUNNER = """
    generator = torch.Generator(device=self.device)
    gen.set_offset(gen.get_offset() - 4)
""".strip()


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


@pytest.fixture(autouse=True)
def torch_s_own(monkeypatch: pytest.MonkeyPatch) -> type[torch.Generator]:
    """Restores torch after the test."""
    own: type[torch.Generator] = torch.Generator
    monkeypatch.setattr(torch, "Generator", own)
    return own


def test_it_is_installed_on_the_cpu_alone(torch_s_own: type[torch.Generator]) -> None:
    install("cuda", RUNNER)
    assert torch.Generator is torch_s_own
    install("cpu", RUNNER)
    assert torch.Generator is RewindingGenerator
    install("cpu", "")
    assert torch.Generator is RewindingGenerator, "the second time there is nothing to do"


def test_a_torch_that_can_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(RewindingGenerator):
        pass

    monkeypatch.setattr(torch, "Generator", Newer)
    install("cpu", "")
    assert torch.Generator is Newer


@pytest.mark.parametrize("lost", range(2))
def test_a_vllm_that_does_it_otherwise_is_refused(lost: int, torch_s_own: type[torch.Generator]) -> None:
    lines = RUNNER.splitlines()
    with pytest.raises(ManifestError, match=r"no line '.*' any more; install vLLM and torch in the versions"):
        install("cpu", lines[1 - lost])
    assert torch.Generator is torch_s_own


def test_a_torch_that_draws_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, torch_s_own: type[torch.Generator]
) -> None:
    monkeypatch.setattr(RewindingGenerator, "set_offset", lambda self, offset: None)
    with pytest.raises(ManifestError, match="does not draw from a generator class of ours"):
        install("cpu", RUNNER)
    assert torch.Generator is torch_s_own
