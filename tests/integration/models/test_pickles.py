"""Directories whose weights are pickles: made to safetensors, without running what is in a pickle."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmserve.cli import main
from llmserve.core.errors import LLMServeError, ModelNotFound
from llmserve.models.directory import check_directory
from llmserve.models.files import silent
from llmserve.models.pickles import convert_pickles


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files, and two names for one tensor."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {}}))
    embedding = torch.arange(12.0).reshape(3, 4)
    one = {"embed": embedding, "lm_head": embedding, "steps": 7}
    torch.save(one, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(
        {"layer": torch.ones(2, 2, dtype=torch.bfloat16).T}, folder / "pytorch_model-00002-of-00002.bin"
    )
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_tensors_and_small_files_are_the_same(source: Path, out: Path) -> None:
    said: list[str] = []
    convert_pickles(source, out, said.append)
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["embed" if "embed" in found else "lm_head"], torch.arange(12.0).reshape(3, 4))
    assert torch.equal(found["layer"], torch.ones(2, 2, dtype=torch.bfloat16))
    assert len(found) == 2, "one tensor with two names is stored once"
    names = {file.name for file in out.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    check_directory(out, "dir:x")
    assert said[1:] == ["reading the pickles, tensors alone", "writing safetensors"]


def test_a_pickle_that_would_run_code_is_refused_and_does_not(
    source: Path, out: Path, tmp_path: Path
) -> None:
    torch.save({"a": Harmful(tmp_path / "ran")}, source / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(LLMServeError, match=r"pytorch_model-00002-of-00002\.bin holds more than tensors"):
        convert_pickles(source, out, silent)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_pickle_is_named(source: Path, out: Path) -> None:
    (source / "pytorch_model-00001-of-00002.bin").write_bytes(b"nothing")
    with pytest.raises(LLMServeError, match="or is no pickle of torch"):
        convert_pickles(source, out, silent)


def test_without_pickles_there_is_nothing_to_convert(source: Path, out: Path) -> None:
    (source / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match="has safetensors already: there is nothing to convert"):
        convert_pickles(source, out, silent)
    for file in source.glob("*.bin"):
        file.unlink()
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="has no pickles with weights"):
        convert_pickles(source, out, silent)


def test_the_command_converts_in_a_process_of_its_own(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    assert main(["models", "convert", str(source), str(made)]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    assert "writing safetensors" in said
    assert last == f"{made} is ready: use it as dir:{made}"
    check_directory(made, "dir:x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "pickled"]
