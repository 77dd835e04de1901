"""Whether a directory holds a complete model, and what its weights are called."""

import json
from pathlib import Path

import pytest

from llmserve.core.errors import ModelNotFound
from llmserve.models.directory import check_directory, without_tokenizer


def index(folder: Path, *names: str, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": dict(enumerate(names))}))


def shards(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{}")


def test_a_complete_one(model_dir: Path) -> None:
    check_directory(model_dir, "dir:x")


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "vocab.json", "tokenizer_config.json"])
def test_any_tokenizer_will_do(model_dir: Path, name: str) -> None:
    (model_dir / "tokenizer.json").rename(model_dir / name)
    assert without_tokenizer(model_dir) is None


def test_what_only_proposes_needs_no_tokenizer(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    check_directory(model_dir, "dir:x")
    assert f"{model_dir} holds no tokenizer" in str(without_tokenizer(model_dir))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json is missing; is this a model directory?"),
        ("model.safetensors", "holds no weights"),
    ],
)
def test_what_is_missing_is_said(model_dir: Path, missing: str, said: str) -> None:
    (model_dir / missing).unlink()
    with pytest.raises(ModelNotFound, match="model 'dir:x': ") as caught:
        check_directory(model_dir, "dir:x")
    assert said in caught.value.message
    assert str(model_dir) in caught.value.message


def test_it_must_be_a_directory(model_dir: Path) -> None:
    for path in (model_dir / "none", model_dir / "config.json"):
        with pytest.raises(ModelNotFound, match="is not a directory"):
            check_directory(path, "dir:x")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_a_config_that_cannot_be_read_is_said(model_dir: Path, text: str) -> None:
    (model_dir / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ModelNotFound, match=r"config\.json cannot be read"):
        check_directory(model_dir, "dir:x")


def test_empty_weights_are_none(model_dir: Path) -> None:
    """As a download that was cut short leaves them."""
    (model_dir / "model.safetensors").write_text("")
    with pytest.raises(ModelNotFound, match="holds no weights"):
        check_directory(model_dir, "dir:x")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "a.pth"]
)
def test_pickles_are_no_weights(model_dir: Path, name: str) -> None:
    (model_dir / name).write_bytes(b"x")
    check_directory(model_dir, "dir:x")
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=rf"its weights are pickles \({name}\), which can run any code"):
        check_directory(model_dir, "dir:x")


def test_the_index_names_all_shards(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    index(model_dir, "a.safetensors", "b.safetensors", "c.safetensors", "a.safetensors")
    shards(model_dir, "a.safetensors")
    with pytest.raises(ModelNotFound, match=r"lacks 2 of 3 weight files, such as b\.safetensors"):
        check_directory(model_dir, "dir:x")
    shards(model_dir, "b.safetensors", "c.safetensors")
    check_directory(model_dir, "dir:x")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": []}'])
def test_an_index_that_is_none_is_said(model_dir: Path, text: str) -> None:
    (model_dir / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelNotFound, match=r"index\.json cannot be read"):
        check_directory(model_dir, "dir:x")


def test_one_complete_format_of_two_is_enough(model_dir: Path) -> None:
    index(model_dir, "pytorch_model-1.bin", name="pytorch_model.bin.index.json")
    check_directory(model_dir, "dir:x")
