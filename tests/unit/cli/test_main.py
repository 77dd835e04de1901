"""The command line as a user meets it: exit codes, where messages go, help for every command."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from llmserve.cli import COMMANDS, explain, import_command, main, profile

ROOT = Path(__file__).parents[3]
SIM = str(ROOT / "examples" / "sim.yaml")


def test_every_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        command = import_command(name)
        assert command.name == name
        with pytest.raises(SystemExit) as end:
            main([command.name, "--help"])
        assert end.value.code == 0
        assert command.about.strip().splitlines()[0] in capsys.readouterr().out


def test_a_command_does_not_wait_for_the_imports_of_others() -> None:
    """Those of all commands take a second of CPU."""
    heavy = "numpy", "llmserve.runner.preflight", "llmserve.k8s", "llmserve.kvstore"
    run = "import sys; from llmserve.cli import main; main(['down', '--run-dir', '/nowhere'])"
    code = f"{run}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "no cluster runs in /nowhere\n")


def test_no_command_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_apply_shows_each_process_and_starts_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "-f", SIM]) == 0
    shown = capsys.readouterr().out
    for name in ("kvmanager-0", "router-0", "prefill-1", "decode-3", "apiserver-0"):
        assert name in shown
    assert "http://127.0.0.1:8000/v1" in shown
    assert "Nothing was started" in shown


def test_apply_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "-f", SIM, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [one["role"] for one in plan["processes"]].count("decode") == 4
    assert plan["base_urls"] == ["http://127.0.0.1:8000"]


def test_a_wrong_manifest_names_file_line_and_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "llmserve.yaml"
    wrong.write_text((ROOT / "llmserve.yaml").read_text().replace("prefill: 1", "prefil: 1"))
    for command in ("apply", "up"):
        assert main([command, "-f", str(wrong)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert f"{wrong}:23: spec.deployment.replicas.prefil" in output.err
        assert "'prefill'" in output.err


def test_a_missing_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "-f", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_kubernetes_needs_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "-f", SIM, "--mode", "k8s"]) == 2
    assert "deployment.k8s.image is not set: set it, or use --image" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "down"])
def test_without_a_cluster(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command]) == 1
    assert "no cluster runs" in capsys.readouterr().err
    assert main([command, "--run-dir", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["kind"]
    assert main(["schema", "--docs"]) == 0
    assert capsys.readouterr().out.strip() == (ROOT / "docs" / "configuration.md").read_text().strip()


def test_versions_name_what_does_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert versions["vllm"]
    assert versions["grpcio"]
    assert main(["version"]) == 0
    assert versions["llmserve"] in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = [{"name": "router-0", "role": "router", "pid": 1, "listen": "h:1"}]
    found = SimpleNamespace(state=SimpleNamespace(roles=roles, name="c"), credentials=None, routers=None)
    for module in (explain, profile):
        monkeypatch.setattr(module, "find_cluster", lambda options: found)
    monkeypatch.setattr(explain, "explain_request", AsyncMock(return_value="{}"))
    monkeypatch.setattr(explain, "chrome_trace", lambda record: record)
    (tmp_path / "file").touch()
    for arguments in (["profile", "router-0", "--out"], ["explain", "some-id", "--trace"]):
        nowhere = str(tmp_path / "file" / "x")
        assert main([*arguments, nowhere]) == 2
        assert capsys.readouterr().err == f"{nowhere}: Not a directory\n"


def test_a_defect_about_a_file_that_no_option_names_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for filename in (str(tmp_path / "state.json"), 5, b"x"):
        lost = AsyncMock(side_effect=FileNotFoundError(2, "No such file or directory", filename))
        monkeypatch.setattr(explain, "find_cluster", lambda options: SimpleNamespace(routers=None))
        monkeypatch.setattr(explain, "explain_request", lost)
        with pytest.raises(FileNotFoundError):
            main(["explain", "some-id", "--run-dir", str(tmp_path), "--trace", str(tmp_path / "trace")])


def test_a_folder_that_cannot_be_made_for_a_named_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = [{"name": "router-0", "role": "router", "pid": 1, "listen": "h:1"}]
    found = SimpleNamespace(state=SimpleNamespace(roles=roles, name="c"), credentials=None)
    monkeypatch.setattr(profile, "find_cluster", lambda options: found)
    (tmp_path / "file").touch()
    assert main(["profile", "router-0", "--out", str(tmp_path / "file" / "x" / "y")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'file' / 'x'}")
