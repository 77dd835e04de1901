"""The words of `models.primary.source`."""

from pathlib import Path

import pytest

from llmserve.core.errors import ModelNotFound
from llmserve.models.sources import ModelSource, SourceKind, parse_source


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("hub:org/name", SourceKind.HUB, "org/name"),
        ("dir:/models/x", SourceKind.DIRECTORY, "/models/x"),
        ("dir:x:y", SourceKind.DIRECTORY, "x:y"),
        ("gguf:~/x.gguf", SourceKind.GGUF, "~/x.gguf"),
        ("package:llm_x/x.gguf", SourceKind.PACKAGE, "llm_x/x.gguf"),
        ("org/name", SourceKind.HUB, "org/name"),
        ("org/name-1.5.v2", SourceKind.HUB, "org/name-1.5.v2"),
    ],
)
def test_words(text: str, kind: SourceKind, place: str) -> None:
    assert parse_source(text) == ModelSource(kind, place)


def test_a_bare_path_is_what_is_there(model_dir: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_source(str(model_dir)) == ModelSource(SourceKind.DIRECTORY, str(model_dir))
    assert parse_source(str(gguf)) == ModelSource(SourceKind.GGUF, str(gguf))
    monkeypatch.chdir(model_dir.parent.parent)
    relative = f"{model_dir.parent.name}/model"
    assert parse_source(relative).kind is SourceKind.DIRECTORY, "before the hub is thought of"
    monkeypatch.setenv("HOME", str(model_dir.parent))
    assert parse_source("~/model").kind is SourceKind.DIRECTORY


@pytest.mark.parametrize(
    "text", ["name", "./org/name", "../name", "/models/none", "~/none", "org/name.gguf", "org/", "a/b/c"]
)
def test_a_path_that_is_not_there_is_no_hub_id(text: str) -> None:
    with pytest.raises(ModelNotFound, match=f"model '{text}': there is no such file or directory here"):
        parse_source(text)
