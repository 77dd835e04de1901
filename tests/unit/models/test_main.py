"""python -m llmserve.models: what it prints."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from llmserve.models.__main__ import main


@pytest.fixture
def manifest(tmp_path: Path, model_dir: Path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text(f"kind: LLMServe\nmodels: {{primary: {{source: 'dir:{model_dir}', name: mine}}}}\n")
    return path


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["models", *map(str, arguments)])
    return main()


def test_the_last_line_is_the_model(
    manifest: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = manifest.parent / "cache"
    assert called(monkeypatch, "pull", "--manifest", manifest, "--cache-dir", cache) == 0
    *progress, last = capsys.readouterr().out.splitlines()
    word, _, found = last.partition(" ")
    assert word == "LLMSERVE_MODEL"
    assert json.loads(found)["path"] == str(model_dir)
    assert json.loads(found)["name"] == "mine"
    assert progress == ["LLMSERVE_PROGRESS computing the digest of the model"]


@pytest.mark.parametrize(("kind", "fetched"), [("vllm", 2), ("sim", 1)])
def test_a_draft_is_prepared_as_well_where_it_is_loaded(
    manifest: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    fetched: int,
) -> None:
    draft = model_dir.parent / "draft"
    shutil.copytree(model_dir, draft)
    speculation = f"{{draft: {{source: 'dir:{draft}'}}}}"
    manifest.write_text(f"{manifest.read_text()}engine: {{kind: {kind}, speculation: {speculation}}}\n")
    assert called(monkeypatch, "pull", "--manifest", manifest, "--cache-dir", manifest.parent / "cache") == 0
    *progress, last = capsys.readouterr().out.splitlines()
    assert len(progress) == fetched
    assert str(model_dir) in last
    shutil.rmtree(draft)
    assert called(monkeypatch, "pull", "--manifest", manifest) == (1 if kind == "vllm" else 0)


def test_an_error_is_one_line(
    manifest: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_dir / "config.json").unlink()
    assert called(monkeypatch, "pull", "--manifest", manifest) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "config.json is missing" in err
    assert err.count("\n") == 1


def test_each_of_several_models_is_prepared_or_one_of_them(
    manifest: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = "".join(f"- {{source: 'dir:{model_dir}', name: {name}}}\n" for name in "ab")
    manifest.write_text(f"kind: LLMServe\nmodels:\n{entries}")
    fetch = ("pull", "--manifest", manifest, "--cache-dir", manifest.parent / "cache")
    assert called(monkeypatch, *fetch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LLMSERVE_PROGRESS a: computing the digest of the model"
    found = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("LLMSERVE_MODEL ")]
    assert [one["name"] for one in found] == ["a", "b"]
    assert called(monkeypatch, *fetch, "--model", "b") == 0
    assert '"name": "b"' in capsys.readouterr().out
    assert called(monkeypatch, *fetch, "--model", "c") == 1
    assert "there is no model 'c'; there is a, b" in capsys.readouterr().err
