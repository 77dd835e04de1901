"""The names of vLLM's arguments, read from a package's sources."""

from pathlib import Path

import pytest

from llmserve.engines.vllm.sources import arguments_here


def _package(folder: Path, text: str) -> None:
    (folder / "vllm" / "engine").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('nobody imports it')")
    (folder / "vllm" / "engine" / "arg_utils.py").write_text(text)


def test_names_are_read_without_an_import(elsewhere: Path) -> None:
    _package(
        elsewhere, "class Other:\n    c: int\nclass EngineArgs:\n    a: int = 1\n    b: str\n    d = 2\n"
    )
    assert arguments_here() == {"a", "b"}


@pytest.mark.parametrize("text", ["", "class Other:\n    a: int\n", "class half("])
def test_a_vllm_that_keeps_them_elsewhere(elsewhere: Path, text: str) -> None:
    _package(elsewhere, text)
    assert arguments_here() is None


def test_no_vllm(elsewhere: Path) -> None:
    assert arguments_here() is None
