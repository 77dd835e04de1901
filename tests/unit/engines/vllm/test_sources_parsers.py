"""The names of parsers, read from a package's sources."""

from pathlib import Path

import pytest

from llmserve.config.refusals import Parsers
from llmserve.engines.vllm.sources import parsers_here


def _package(folder: Path, tool: str, reasoning: str) -> None:
    for name, text in (("tool_parsers", tool), ("reasoning", reasoning)):
        (folder / "vllm" / name).mkdir(parents=True)
        (folder / "vllm" / name / "__init__.py").write_text(text)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('nobody imports it')")


def test_names_are_read_without_an_import(elsewhere: Path) -> None:
    tool = "_TOOL_PARSERS_TO_REGISTER = {'hermes': ('f', 'C'), 'x': ('f', 'D')}\n"
    _package(elsewhere, f"import torch\n{tool}", "_REASONING_PARSERS_TO_REGISTER = {'qwen3': ('f', 'C')}\n")
    assert parsers_here() == Parsers(frozenset({"hermes", "x"}), frozenset({"qwen3"}))


@pytest.mark.parametrize("tool", ["", "_TOOL_PARSERS_TO_REGISTER = made()\n", "def half("])
def test_a_vllm_that_keeps_them_elsewhere(elsewhere: Path, tool: str) -> None:
    _package(elsewhere, tool, "_REASONING_PARSERS_TO_REGISTER = {'qwen3': ('f', 'C')}\n")
    assert parsers_here() is None


def test_no_vllm(elsewhere: Path) -> None:
    assert parsers_here() is None
