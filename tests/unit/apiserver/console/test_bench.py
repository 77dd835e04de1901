"""Runs of `llmserve bench`, listed, begun and ended. (Real ones: tests/integration/console.)"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmserve.apiserver.console.bench import BenchBody, BenchRuns
from llmserve.core.errors import Forbidden, NotFound, Overloaded
from llmserve.core.process import START_FIELD, process_fields

HERE = [os.getpid(), process_fields(os.getpid())[START_FIELD]]


def _keep(run_dir: Path, name: str, **more: Any) -> None:
    run = {"state": "ended", "process": HERE, "error": None, "points": [{"seconds": 1}], **more}
    (run_dir / "bench").mkdir(exist_ok=True)
    (run_dir / "bench" / f"{name}.json").write_text(json.dumps(run))


def test_runs_are_listed_the_latest_first_and_read_with_their_points(tmp_path: Path) -> None:
    runs = BenchRuns(str(tmp_path), lambda: "")
    assert runs.list() == {"running": None, "runs": []}
    for name in ("101", "103", "102"):
        _keep(tmp_path, name)
    (tmp_path / "bench" / "104.json").write_text("{")
    assert [(run["id"], run["points"]) for run in runs.list()["runs"]] == [
        ("103", []),
        ("102", []),
        ("101", []),
    ]
    assert runs.read("102")["points"] == [{"seconds": 1}]
    for wrong in ("104", "105", "../bench/101", "*"):
        with pytest.raises(NotFound):
            runs.read(wrong)


def test_files_that_have_not_changed_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, opened, read = BenchRuns(str(tmp_path), lambda: ""), list[str](), Path.read_text

    def read_and_tell(path: Path) -> str:
        opened.append(path.stem)
        return read(path)

    for name in ("101", "102"):
        _keep(tmp_path, name)
    (tmp_path / "bench" / "103.json").write_text("{")
    first = runs.list()
    monkeypatch.setattr(Path, "read_text", read_and_tell)
    assert runs.list() == first
    assert opened == []
    _keep(tmp_path, "102", error="it ended badly")
    assert runs.list()["runs"][0]["error"] == "it ended badly"
    (tmp_path / "bench" / "101.json").unlink()
    assert [run["id"] for run in runs.list()["runs"]] == ["102"]
    assert opened == ["102"]


def test_a_run_whose_process_is_gone_has_failed(tmp_path: Path) -> None:
    runs = BenchRuns(str(tmp_path), lambda: "")
    _keep(tmp_path, "101", state="running", process=[HERE[0], "1"])
    (run,) = runs.list()["runs"]
    assert (run["state"], run["error"]) == ("failed", "it ended without a report")
    with pytest.raises(NotFound, match="no load runs"):
        runs.stop()
    _keep(tmp_path, "102", state="starting")
    assert runs.list()["running"] == "102"


def test_a_load_of_another_user_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    _keep(tmp_path, "101", state="running")
    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(Forbidden, match="another user"):
        BenchRuns(str(tmp_path), lambda: "").stop()


async def test_one_load_runs_at_a_time_over_all_apiservers(tmp_path: Path) -> None:
    _keep(tmp_path, "101", state="running")
    other = os.open(tmp_path / "bench" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(Overloaded, match="one at a time"):
        await BenchRuns(str(tmp_path), lambda: "").start(BenchBody())
    os.close(other)


async def test_without_a_run_directory_runs_are_the_apiserver_s_own() -> None:
    runs = BenchRuns(None, lambda: "")
    folder = runs._folder()
    assert runs.list()["runs"] == []
    await runs.aclose()
    await runs.aclose()
    assert not folder.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": 33},
        {"requests": 501},
        {"prompt_tokens": 0},
        {"output_tokens": 1025},
        {"seconds": 121},
        {"x": 1},
        {"model": "a\0b"},
        {"api_key": "a\0b"},
    ],
)
def test_a_load_is_small(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BenchBody.model_validate(wrong)


def test_a_key_is_no_argument() -> None:
    body = BenchBody(api_key="secret", model="-m")
    assert "secret" not in repr(body)
    assert "--model=-m" in body.arguments()
    assert not any("secret" in text for text in body.arguments())


@pytest.mark.parametrize("wrong", [{"apikey": "secret"}, {"api_key": ["secret"]}, {"api_key": "secret\n"}])
def test_a_refusal_which_is_kept_in_the_record_shows_no_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(wrong))}: ") as caught:
        BenchBody.model_validate(wrong)
    (problem,) = caught.value.errors()
    assert problem["input"] == wrong, "vLLM's layer shows the size of a mapping, and not what is in it"
    assert "secret" not in str({**problem, "input": None})
