"""Where a model stands before it is prepared."""

import sys
from pathlib import Path

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import ModelNotFound
from llmserve.models.convert import CONVERTER_VERSION
from llmserve.models.converted import make_record
from llmserve.models.files import DigestCache
from llmserve.models.resolve import PreparationStage, Survey, survey

survey_module = sys.modules["llmserve.models.resolve"]


def _survey(source: str, cache: Path, *, proposes: bool = False, **fields: str) -> Survey:
    return survey(ModelSpec.model_validate({"source": source, **fields}), cache, proposes=proposes)


def test_a_directory(model_dir: Path, tmp_path: Path) -> None:
    assert _survey(f"dir:{model_dir}", tmp_path) == Survey(PreparationStage.READY, str(model_dir), 2)


def test_half_a_directory(model_dir: Path, tmp_path: Path) -> None:
    (model_dir / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"config\.json is missing"):
        _survey(f"dir:{model_dir}", tmp_path)


def test_a_gguf_file_before_and_after_its_conversion(gguf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    estimate = 4 * gguf.stat().st_size
    assert _survey(f"gguf:{gguf}", cache) == Survey(PreparationStage.TO_CONVERT, str(gguf), estimate)
    made = cache / f"{gguf.stem}-0123456789abcdef-v{CONVERTER_VERSION}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_text("12345")
    assert (
        _survey(f"gguf:{gguf}", cache).stage is PreparationStage.TO_CONVERT
    )  # without its record it is not whole
    make_record(made, "0" * 64, CONVERTER_VERSION, DigestCache(cache / "digests.json")).write(made)
    assert _survey(f"gguf:{gguf}", cache) == Survey(PreparationStage.READY, str(made), 5)


def test_what_another_converter_made_does_not_count(gguf: Path, tmp_path: Path) -> None:
    made = tmp_path / f"{gguf.stem}-0123456789abcdef-v{CONVERTER_VERSION + 1}"
    made.mkdir()
    make_record(made, "0" * 64, 1, DigestCache(tmp_path / "digests.json")).write(made)
    assert _survey(f"gguf:{gguf}", tmp_path).stage is PreparationStage.TO_CONVERT


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("text")
    with pytest.raises(ModelNotFound, match="is not a GGUF file"):
        _survey(f"gguf:{tmp_path}/m.gguf", tmp_path)
    with pytest.raises(ModelNotFound, match="not installed"):
        _survey("package:llm_not_there/m.gguf", tmp_path)


def test_only_the_hub_has_revisions(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="only a hub model has a revision"):
        _survey(f"dir:{model_dir}", tmp_path, revision="abc")


@pytest.mark.parametrize(
    ("damage", "whole", "proposes_as_it_is"),
    [(None, True, True), ("model.safetensors", False, False), ("tokenizer.json", False, True)],
)
def test_a_model_of_the_hub_that_was_downloaded(
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str | None,
    whole: bool,
    proposes_as_it_is: bool,
) -> None:
    """Most heads have no tokenizer."""
    monkeypatch.setattr(survey_module, "cached_snapshot", lambda repo, revision: model_dir)
    if damage:
        (model_dir / damage).unlink()
    stages = {True: PreparationStage.READY, False: PreparationStage.TO_DOWNLOAD}
    assert _survey("hub:a/b", tmp_path).stage is stages[whole]
    assert _survey("hub:a/b", tmp_path, proposes=True).stage is stages[proposes_as_it_is]


def test_a_model_of_the_hub_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "cached_snapshot", lambda repo, revision: None)
    assert _survey("hub:a/b", tmp_path) == Survey(PreparationStage.TO_DOWNLOAD, "hub:a/b", 0)
