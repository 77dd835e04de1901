"""What `llmserve models load` asks for, and what `served` shows."""

import argparse
import json
import re
from pathlib import Path

import pytest

from llmserve.cli import main
from llmserve.cli.models.cluster import _entry, models_table
from llmserve.core.errors import InvalidRequest

MANIFEST = """
kind: LLMServe
models:
  - {source: hub:o/large, name: large, replicas: {decode: 2}}
  - {source: hub:o/small, name: small}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "llmserve.yaml"
    path.write_text(MANIFEST)
    return str(path)


def asked(manifest: str, model: str, *settings: str, name: str | None = None) -> dict[str, object]:
    options = argparse.Namespace(model=model, name=name, set=list(settings), file=manifest, router=None)
    found: dict[str, object] = json.loads(_entry(options))
    return found


def test_a_source_is_one(manifest: str) -> None:
    assert asked(manifest, "hub:o/b") == {"source": "hub:o/b"}
    assert asked(manifest, "hub:o/b", name="b") == {"source": "hub:o/b", "name": "b"}


def test_a_name_of_the_manifest_means_its_entry(manifest: str) -> None:
    assert asked(manifest, "large") == {"source": "hub:o/large", "name": "large", "replicas": {"decode": 2}}
    assert asked(manifest, "large", name="copy")["name"] == "copy"


def test_keys_are_set_as_yaml(manifest: str) -> None:
    entry = asked(manifest, "large", "engine.max_model_len=512", "replicas.prefill=1", "disaggregated=false")
    assert entry["engine"] == {"max_model_len": 512}
    assert entry["replicas"] == {"decode": 2, "prefill": 1}
    assert entry["disaggregated"] is False


@pytest.mark.parametrize("text", ["engine", "=5", ""])
def test_what_is_no_key_and_value_is_refused(manifest: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="has to be KEY=VALUE"):
        asked(manifest, "hub:o/b", text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("engine=[", "not YAML"),
        ("engine.options.x=!!set {a}", "no JSON value"),
        ("revision=2026-01-01", "no JSON value: put text in quotes"),
        ("source.x=1", "source is no section"),
    ],
)
def test_what_no_entry_can_have_is_refused(manifest: str, text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^--set {re.escape(text)}: .*{why}"):
        asked(manifest, "hub:o/b", text)


def test_without_the_file_of_another_cluster_a_word_is_a_source() -> None:
    options = argparse.Namespace(model="large", name=None, set=[], file=None, router="h:1")
    assert json.loads(_entry(options)) == {"source": "large"}


def test_the_table_says_what_is_done_or_wrong() -> None:
    row = {"name": "b", "state": "fetching", "requests": 0, "source": "hub:o/b", "error": None}
    table = models_table([row | {"detail": "42 %"}, row | {"detail": None, "error": "no room"}])
    assert list(table.columns[4].cells) == ["42 %", "no room"]
    assert list(table.columns[0].cells) == ["b", "b"]


def test_help_names_the_actions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "--help"])
    assert "llmserve models load" in capsys.readouterr().out
