"""The model that a worker serves, named by its contents before and after the engine loads it, and the engine
that a manifest asks for."""

from pathlib import Path
from typing import Any

import pytest

from llmserve.config.schema import Lora, Manifest
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.errors import StartFailed
from llmserve.core.outcome import WorkerRole
from llmserve.models.files import silent
from llmserve.workers.build import WorkerModel, engine_spec, prepare_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_CACHE_DIR", str(tmp_path / "cache"))


def manifest(kind: str, name: str = "m") -> Manifest:
    return Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": {"primary": {"source": "org/model", "name": name}},
            "engine": {"kind": kind},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


@pytest.mark.parametrize("kind", ["vllm", "sim"])
def test_other_weights_and_another_configuration_are_another_model(folder: Path, kind: str) -> None:
    found = {prepare_model(manifest(kind), folder, silent).identity}
    (folder / "model.safetensors").write_bytes(bytes(99) + b"x")
    found.add(prepare_model(manifest(kind), folder, silent).identity)
    (folder / "config.json").write_text('{"rope_theta": 1}')
    found.add(prepare_model(manifest(kind), folder, silent).identity)
    assert len(found) == 3
    assert prepare_model(manifest(kind, "other"), folder, silent).identity in found


def test_a_model_that_changes_while_an_engine_loads_it_is_not_served(folder: Path) -> None:
    model = prepare_model(manifest("vllm"), folder, silent)
    model.check_unchanged()
    (folder / "model.safetensors").write_bytes(bytes(99) + b"x")
    with pytest.raises(StartFailed, match="was changed while it was loaded"):
        model.check_unchanged()


def test_engines_are_told_which_adapters_they_must_be_able_to_run() -> None:
    def shape(**lora: Any) -> LoraShape:
        with_lora = manifest("sim").model_copy(update={"lora": Lora(**lora) if lora else None})
        return engine_spec(with_lora, "decode-0", WorkerRole.DECODE, 1, WorkerModel(None, "m"), "host:1").lora

    assert shape() == NO_ADAPTERS
    assert shape(slots=2, max_rank=8) == LoraShape(2, 8)
    assert shape(slots=2, target_modules=("q_proj",)) == LoraShape(2, 16, ("q_proj",))


def test_without_a_model_the_name_stands_for_it() -> None:
    one, two = (prepare_model(manifest("sim", name), None, silent) for name in ("one", "two"))
    assert one.path is None
    assert one.identity != two.identity
    one.check_unchanged()
