"""Fake model files."""

from pathlib import Path

import pytest


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """Has the magic number, and nothing else of a model."""
    path = tmp_path / "tiny.Q4.gguf"
    path.write_bytes(b"GGUF" + b"weights")
    return path


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder
