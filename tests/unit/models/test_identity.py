"""The identity of a model: no edit of what an engine computes from leaves it as it was."""

import json
import os
import random
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from llmserve.core.errors import LLMServeError
from llmserve.models.directory import identity_files, model_identity
from llmserve.models.files import DigestCache

TENSORS = 24
TENSOR_BYTES = 4096
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    "quantization_config": {"quant_method": "fp8", "ignored_layers": ["lm_head"]},
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


def write_tensors(path: Path, rng: random.Random) -> None:
    """In the format of safetensors: the length of a header, the header, the bytes."""
    places = {
        f"layer.{index}": {
            "dtype": "BF16",
            "shape": [TENSOR_BYTES // 2],
            "data_offsets": [index * TENSOR_BYTES, (index + 1) * TENSOR_BYTES],
        }
        for index in range(TENSORS)
    }
    header = json.dumps(places).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + rng.randbytes(TENSORS * TENSOR_BYTES))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = random.Random(1)
    folder = tmp_path / "model"
    folder.mkdir()
    for index in range(2):
        write_tensors(folder / f"model-{index}.safetensors", rng)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"kv_cache_quant_algo": "FP8"}}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("a model")
    return folder


def put_back_times(path: Path, before: os.stat_result) -> None:
    """As careful tools do. Waits for the file system's clock to tick, as an editor's user does."""
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit_a_byte(folder: Path, rng: random.Random) -> Path:
    path = rng.choice(identity_files(folder))
    contents = bytearray(path.read_bytes())
    contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
    path.write_bytes(contents)
    return path


def edit_a_tensor(folder: Path, rng: random.Random) -> Path:
    """Two of them change their places: the file has the same bytes, elsewhere."""
    path = rng.choice([file for file in identity_files(folder) if file.suffix == ".safetensors"])
    contents = bytearray(path.read_bytes())
    begin = len(contents) - TENSORS * TENSOR_BYTES
    one, two = (begin + index * TENSOR_BYTES for index in rng.sample(range(TENSORS), 2))
    one_bytes, two_bytes = contents[one : one + TENSOR_BYTES], contents[two : two + TENSOR_BYTES]
    contents[one : one + TENSOR_BYTES], contents[two : two + TENSOR_BYTES] = two_bytes, one_bytes
    path.write_bytes(contents)
    return path


def edit_a_key(folder: Path, rng: random.Random) -> Path:
    path = folder / "config.json"
    config = json.loads(json.dumps(CONFIG))
    section = rng.choice([config, config["rope_scaling"], config["quantization_config"]])
    key = rng.choice(list(section))
    section[key] = f"{section[key]}{rng.random()}"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("edit", [edit_a_byte, edit_a_tensor, edit_a_key])
@pytest.mark.parametrize("trusts_all_files", [False, True])
def test_no_edit_anywhere_keeps_the_identity(
    model: Path, tmp_path: Path, edit: Any, trusts_all_files: bool
) -> None:
    """One edit after another, of which each keeps the file's size or nearly so and puts its time back."""
    ahead_ns = 60_000_000_000 if trusts_all_files else 0
    digests = DigestCache(tmp_path / "digests.json", now_ns=lambda: time.time_ns() + ahead_ns)
    rng = random.Random(f"{edit.__name__}{trusts_all_files}")
    seen = {model_identity(model, digests)}
    for count in range(1, 25):
        before = {path: path.stat() for path in identity_files(model)}
        path = edit(model, rng)
        put_back_times(path, before[path])
        seen.add(model_identity(model, digests))
        assert len(seen) == count + 1, f"the edit of {path.name} was not seen"


@pytest.mark.parametrize("change", ["renamed", "removed", "added", "unknown"])
def test_the_set_of_files_is_part_of_it(model: Path, tmp_path: Path, change: str) -> None:
    digests = DigestCache(tmp_path / "digests.json")
    before = model_identity(model, digests)
    first = model / "model-0.safetensors"
    match change:
        case "renamed":
            first.rename(model / "model-3.safetensors")
        case "removed":
            first.unlink()
        case "added":
            shutil.copy(first, model / "model-3.safetensors")
        case "unknown":
            (model / "scales.xyz").touch()
    assert model_identity(model, digests) != before


def test_two_files_that_change_places_are_another_model(model: Path, tmp_path: Path) -> None:
    digests = DigestCache(tmp_path / "digests.json")
    before = model_identity(model, digests)
    first, second = model / "model-0.safetensors", model / "model-1.safetensors"
    first.rename(model / "x")
    second.rename(first)
    (model / "x").rename(second)
    assert model_identity(model, digests) != before


def test_equal_contents_have_one_identity_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    """Also as the hub's client keeps them: links to blobs."""
    copy, links = tmp_path / "copy", tmp_path / "links"
    shutil.copytree(model, copy)
    links.mkdir()
    for file in copy.iterdir():
        (links / file.name).symlink_to(file)
    digests = DigestCache(tmp_path / "digests.json")
    assert len({model_identity(folder, digests) for folder in (model, copy, links)}) == 1
    edit_a_byte(copy, random.Random(1))
    assert model_identity(links, digests) == model_identity(copy, digests) != model_identity(model, digests)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md", ".lock"]
)
def test_what_cannot_change_the_kv_of_given_tokens_does_not_count(
    model: Path, tmp_path: Path, name: str
) -> None:
    digests = DigestCache(tmp_path / "digests.json")
    before = model_identity(model, digests)
    (model / name).write_text("other")
    assert model_identity(model, digests) == before


def test_a_file_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    (model / "model-0.safetensors").unlink()
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    digests = DigestCache(tmp_path / "digests.json")
    assert "config.json" not in {file.name for file in identity_files(model)}
    with pytest.raises(LLMServeError, match=r"nowhere.*cannot be read"):
        model_identity(tmp_path / "nowhere", digests)
