"""The model that a worker serves, named by its contents before and after the engine loads it, and the engine
that a manifest asks for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmserve.config.schema import EngineConfig, Lora, Manifest, ModelSpec, Speculation
from llmserve.config.speculation import speculation_of
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.errors import ManifestError, StartFailed
from llmserve.core.request import WorkerRole
from llmserve.models.files import silent
from llmserve.workers.build import WorkerModel, engine_spec, kv_io_share, prepare_model

WEIGHTS = "model.safetensors"


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
    (folder / WEIGHTS).write_bytes(bytes(100))
    return folder


@pytest.mark.parametrize("kind", ["vllm", "sim"])
def test_other_weights_and_another_configuration_are_another_model(folder: Path, kind: str) -> None:
    found = {prepare_model(manifest(kind), folder, silent).identity}
    (folder / WEIGHTS).write_bytes(bytes(99) + b"x")
    found.add(prepare_model(manifest(kind), folder, silent).identity)
    (folder / "config.json").write_text('{"rope_theta": 1}')
    found.add(prepare_model(manifest(kind), folder, silent).identity)
    assert len(found) == 3
    assert prepare_model(manifest(kind, "other"), folder, silent).identity in found


def test_a_model_that_changes_while_an_engine_loads_it_is_not_served(folder: Path) -> None:
    model = prepare_model(manifest("vllm"), folder, silent)
    model.check_unchanged()
    (folder / WEIGHTS).write_bytes(bytes(99) + b"x")
    with pytest.raises(StartFailed, match="was changed while it was loaded"):
        model.check_unchanged()


def test_a_draft_is_named_by_its_contents_as_well(folder: Path) -> None:
    draft = folder.parent / "draft"
    shutil.copytree(folder, draft)
    (draft / "tokenizer.json").write_text("{}")
    speculation = Speculation(draft=ModelSpec(source=f"dir:{draft}"))
    speculating = manifest("vllm").model_copy(update={"engine": EngineConfig(speculation=speculation)})
    model = prepare_model(speculating, folder, silent)
    spec = engine_spec(speculating, "decode-0", WorkerRole.DECODE, 1, model, "host:1")
    assert spec.draft_dir == draft
    assert spec.draft_identity == spec.model_identity, "the same files"
    assert spec.speculation == speculation_of(speculating)
    model.check_unchanged()
    (draft / WEIGHTS).write_bytes(bytes(99) + b"x")
    with pytest.raises(StartFailed, match="draft was changed while it was loaded"):
        model.check_unchanged()
    assert prepare_model(speculating, folder, silent).draft != model.draft


def test_a_simulated_engine_names_its_draft_and_loads_none() -> None:
    speculation = Speculation(draft=ModelSpec(source="org/small"))
    engine = EngineConfig(kind="sim", speculation=speculation)
    speculating = manifest("sim").model_copy(update={"engine": engine})
    spec = engine_spec(
        speculating,
        "decode-0",
        WorkerRole.DECODE,
        1,
        prepare_model(speculating, None, silent),
        "host:1",
    )
    assert (spec.draft_dir, bool(spec.draft_identity)) == (None, True)


@pytest.mark.parametrize(("method", "named"), [("mtp", "mtp"), ("ngram", ""), ("none", "")])
def test_an_engine_that_proposes_with_layers_of_its_model_says_so(
    folder: Path, method: Any, named: str
) -> None:
    """Its blocks hold their KV, and those of other engines do not."""
    engine = EngineConfig(speculation=Speculation(method=method))
    speculating = manifest("vllm").model_copy(update={"engine": engine})
    model = prepare_model(speculating, folder, silent)
    spec = engine_spec(speculating, "decode-0", WorkerRole.DECODE, 1, model, "host:1")
    assert (spec.draft_dir, spec.draft_identity) == (None, named)


def test_engines_are_told_which_adapters_they_must_be_able_to_run() -> None:
    def shape(**lora: Any) -> LoraShape:
        with_lora = manifest("sim").model_copy(update={"lora": Lora(**lora) if lora else None})
        return engine_spec(with_lora, "decode-0", WorkerRole.DECODE, 1, WorkerModel(None, "m"), "host:1").lora

    assert shape() == NO_ADAPTERS
    assert shape(slots=2, max_rank=8) == LoraShape(2, 8)
    assert shape(slots=2, target_modules=("q_proj",)) == LoraShape(2, 16, ("q_proj",))


def test_adapters_may_change_the_models_linear_modules(folder: Path) -> None:
    with_lora = manifest("vllm").model_copy(update={"lora": Lora()})

    def modules() -> tuple[str, ...]:
        model = WorkerModel(folder, "m")
        return engine_spec(with_lora, "decode-0", WorkerRole.DECODE, 1, model, "host:1").lora.target_modules

    weights = {"model.layers.0.self_attn.q_proj.weight": (4, 4), "model.embed_tokens.weight": (9, 4)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in weights.items()}, folder / WEIGHTS)
    assert modules() == ("q_proj",)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(ManifestError, match="name them here"):
        modules()


def test_without_a_model_the_name_stands_for_it() -> None:
    one, two = (prepare_model(manifest("sim", name), None, silent) for name in ("one", "two"))
    assert one.path is None
    assert one.identity != two.identity
    one.check_unchanged()


def test_engines_of_all_models_share_the_rate_of_kv() -> None:
    models = [{"source": "hub:a/large"}, {"source": "hub:a/small", "disaggregated": False}]
    base = {"kind": "LLMServe", "deployment": {"replicas": {"prefill": 3, "decode": 2}}}
    limited = {"budgets": {"max_kv_io_gbps": 8.0}}
    assert kv_io_share(Manifest.model_validate(base | {"models": models})) is None
    assert kv_io_share(Manifest.model_validate(base | limited | {"models": models})) == 1e9 / 4
    one = {"models": {"primary": {"source": "hub:a/b"}}}
    assert kv_io_share(Manifest.model_validate(base | limited | one)) == 1e9 / 2
