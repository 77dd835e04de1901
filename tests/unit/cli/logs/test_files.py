"""`llmserve logs` on the files that a cluster has left."""

from pathlib import Path

import pytest

from llmserve.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logs of a cluster that has run below the current directory."""
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / ".llmserve" / "demo" / "logs"
    logs.mkdir(parents=True)
    (logs / "router-0.log").write_text(
        "2026-01-02 10:00:01,000 INFO r: one\n2026-01-02 10:00:03,000 INFO r: three\n"
    )
    (logs / "decode-0.log").write_text("2026-01-02 10:00:02,000 INFO d: two\n  more\n")
    (logs / "decode-0.1.log").write_text("2026-01-02 10:00:00,000 INFO d: zero\n")
    (logs / "decode-0.previous.log").write_text("2026-01-02 09:00:00,000 INFO d: before\n")
    return logs


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["logs", *arguments]) == 0
    return [f"{line[:10].strip()} {line.split()[-1]}" for line in capsys.readouterr().out.splitlines()]


def test_all_of_it_by_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == [
        "decode-0 | zero",
        "router-0 | one",
        "decode-0 | two",
        "decode-0 | more",
        "router-0 | three",
    ]


def test_of_a_role_the_last_ones_from_a_time_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "router") == ["router-0 | one", "router-0 | three"]
    assert shown(capsys, "--tail", "2") == ["decode-0 | more", "router-0 | three"]
    assert shown(capsys, "decode-0", "--since", "2026-01-02T10:00:01") == [
        "decode-0 | two",
        "decode-0 | more",
    ]
    assert shown(capsys, "--run-dir", str(folder.parent), "--tail", "0") == []


def test_by_its_manifest_with_a_log_dir_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "kind: LLMServe\nmodels: {primary: {source: 'dir:/x'}}\nobservability: {log_dir: elsewhere}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "decode-0.log").write_text("hello\n")
    assert shown(capsys, "-f", str(path)) == ["decode-0 | hello"]


def test_what_is_not_there_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "prefill"]) == 2
    assert "no process or role is called prefill; there are: decode-0, router-0" in capsys.readouterr().err
    assert main(["logs", "--run-dir", "nowhere"]) == 1
    said = capsys.readouterr().err
    assert "no cluster has run here: there is no nowhere/logs" in said
    assert "name its manifest with -f" in said
    (tmp_path / ".llmserve" / "other" / "logs").mkdir(parents=True)
    assert main(["logs"]) == 2
    assert "choose one with --run-dir: .llmserve/demo, .llmserve/other" in capsys.readouterr().err


def test_the_manifest_here_comes_before_what_else_has_run_here(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llmserve.yaml").write_text(
        "kind: LLMServe\nmodels: {primary: {source: 'dir:/x'}}\nobservability: {log_dir: elsewhere}\n"
    )
    assert shown(capsys, "router") == ["router-0 | one", "router-0 | three"], "it has never run itself"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "decode-0.log").write_text("hello\n")
    assert shown(capsys) == ["decode-0 | hello"]


def test_nothing_has_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["logs"]) == 1
    assert "no cluster has run here" in capsys.readouterr().err
