"""What vLLM can do with an architecture, read from a package's sources."""

from pathlib import Path

import pytest

from llmserve.engines.vllm.architectures import Support, support_here

REGISTRY = """
_TEXT_GENERATION_MODELS = {
    "A": ("one", "A"),
    "B": ("two", "B"),
    "C": ("two", "C"),
    "Lost": ("two", "Lost"),
    "Odd": made(),
}
_VLLM_OTHER = {"D": ("one", "A")}
"""
ONE = "class A(Module, SupportsLoRA): ...\n"
TWO = "from .one import A as Base\nclass B(Base): ...\nclass C(C0): ...\nclass C0(Module, other.D): ...\n"


def _package(folder: Path, registry: str) -> None:
    models = folder / "vllm" / "model_executor" / "models"
    models.mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('nobody imports it')")
    for name, text in (("registry", registry), ("one", ONE), ("two", TWO)):
        (models / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    ("architecture", "known", "lora"),
    [
        ("A", True, True),
        ("B", True, True),
        ("C", True, False),
        ("Lost", True, False),
        ("D", False, False),
        ("Odd", False, False),
    ],
)
def test_the_class_and_its_bases_tell(elsewhere: Path, architecture: str, known: bool, lora: bool) -> None:
    _package(elsewhere, REGISTRY)
    assert support_here(architecture) == Support(known, lora)


@pytest.mark.parametrize("registry", ["", "_MODELS = made()\n", "def half("])
def test_a_vllm_that_keeps_them_elsewhere(elsewhere: Path, registry: str) -> None:
    _package(elsewhere, registry)
    assert support_here("A") is None


def test_no_vllm(elsewhere: Path) -> None:
    assert support_here("A") is None
