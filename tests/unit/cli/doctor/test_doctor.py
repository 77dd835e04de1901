"""`llmserve doctor` as it is read: by people, and by programs."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmserve.cli import main
from llmserve.cli.doctor import known_key, page, summary
from llmserve.doctor import Finding, FindingSection, Status, note, ok, problem, warning
from llmserve.doctor.examine import Subject
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import ClusterState

_GOOD = FindingSection("Machine", (ok("cores", "2 (0-1)", cores=2.0),))
_MIXED = FindingSection(
    "Transports",
    (
        note("nixl", "5 GB/s", "Uses TCP."),
        warning("ucx", "slow", "Wait."),
        problem("tcp", "away", "Repair it."),
    ),
)


class Doctor:
    """Calls the command, where no cluster runs; what it finds is given. subjects: what it looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.subjects: list[Subject] = []
        self._sections: tuple[FindingSection, ...] = ()
        monkeypatch.setattr(sys.modules["llmserve.cli.doctor"], "examine", self._examine)

    def _examine(self, subject: Subject, on_step: Callable[[str], None]) -> Iterator[FindingSection]:
        self.subjects.append(subject)
        on_step("Measuring tcp")
        yield from self._sections

    def __call__(self, *sections: FindingSection, arguments: Sequence[str] = ()) -> int:
        self._sections = sections
        return main(["doctor", *arguments])


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    monkeypatch.chdir(tmp_path)
    return Doctor(monkeypatch)


def test_all_is_well(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(_GOOD) == 0
    output = capsys.readouterr()
    assert output.out == (
        "Machine\n"
        "ok       cores                 2 (0-1)\n"
        "\n"
        "Cluster\n"
        "ok       cluster               none runs here\n"
        "\n"
        "All is well: no problems, no warnings, no notes.\n"
    )
    assert "Measuring" not in output.out + output.err  # neither is a terminal


def test_advice_stands_below_its_line(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(_MIXED) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "Transports",
        "note     nixl                  5 GB/s",
        "                               Uses TCP.",
        "warning  ucx                   slow",
        "                               Wait.",
        "problem  tcp                   away",
        "                               Repair it.",
    ]
    assert lines[-1] == "Something will not work: 1 problem, 1 warning, 1 note."


def test_warnings_alone_are_no_failure(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        doctor(FindingSection("Machine", (warning("cores", "1", "Slow."), warning("swap", "2", "Slow."))))
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == (
        "It works, but could be better: no problems, 2 warnings, no notes."
    )


def test_for_programs(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(_GOOD, _MIXED, arguments=("--json",)) == 1
    told = json.loads(capsys.readouterr().out)
    findings = told.pop("findings")
    assert told == {"healthy": False, "problems": 1, "warnings": 1, "notes": 1}
    assert findings[0] == {
        "section": "machine",
        "name": "cores",
        "status": "ok",
        "value": "2 (0-1)",
        "advice": "",
        "figures": {"cores": 2.0},
    }
    assert [one["section"] for one in findings[1:]] == ["transports"] * 3 + ["cluster"]


def _text(section: FindingSection, width: int, **options: Any) -> str:
    console = Console(width=width, **options)
    with console.capture() as captured:
        console.print(page(section, width), soft_wrap=True)
    return captured.get()


def test_long_texts_stay_in_their_column_and_commands_stay_whole() -> None:
    command = "--" + "x" * 60
    shown = _text(FindingSection("S", (note("n", "v", f"one two three {command} four"),)), 70).splitlines()
    assert shown[2:5] == [" " * 31 + text for text in ("one two three", command, "four")]


def test_each_line_of_a_message_stays_one() -> None:
    shown = _text(FindingSection("S", (problem("n", "v", "m.yaml:1: a\nm.yaml:2: b"),)), 100).splitlines()
    assert shown[2:4] == [" " * 31 + text for text in ("m.yaml:1: a", "m.yaml:2: b")]


def test_text_of_a_finding_is_no_markup() -> None:
    assert "[red]odd[/" in _text(FindingSection("S", (ok("n", "[red]odd[/"),)), 100)


@pytest.mark.parametrize(
    ("is_terminal", "colour"), [(True, "\x1b[32mok"), (False, "ok")], ids=["terminal", "file"]
)
def test_colour_only_on_a_terminal(is_terminal: bool, colour: str) -> None:
    shown = _text(_GOOD, 100, force_terminal=is_terminal, color_system="standard" if is_terminal else None)
    assert shown.splitlines()[1].startswith(colour)
    assert ("\x1b" in shown) == is_terminal


def _finding(status: Status) -> Finding:
    return Finding("n", status, "v", "" if status is Status.OK else "a")


@pytest.mark.parametrize("status", Status)
def test_the_summary_has_the_colour_of_the_worst(status: Status) -> None:
    line = summary([FindingSection("S", (_finding(Status.OK), _finding(status)))])
    worst = {Status.PROBLEM: "bold red", Status.WARNING: "yellow"}.get(status, "green")
    assert [str(span.style) for span in line.spans] == [worst]


def test_the_manifest_that_is_examined(doctor: Doctor, tmp_path: Path) -> None:
    doctor(_GOOD)
    doctor(_GOOD, arguments=("-f", "other.yaml"))
    (tmp_path / "llmserve.yaml").write_text("kind: LLMServe\nmodels: {primary: {source: hub:a/b}}\n")
    doctor(_GOOD)
    manifests = [subject.manifest for subject in doctor.subjects]
    assert manifests == [None, Path("other.yaml"), Path("llmserve.yaml")]


def test_a_wrong_manifest_hides_whether_a_cluster_runs(
    doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llmserve.yaml").write_text("kind: Nothing\n")
    doctor(_GOOD)
    assert "note     cluster               not looked for" in capsys.readouterr().out


def _role(name: str, stand: str, detail: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "role": name.partition("-")[0],
        "pid": 7,
        "stand": stand,
        "detail": detail,
        "restarts": 0,
        "listen": None,
        "http": None,
        "routers": [],
        "kvmanagers": [],
        "log": f"{name}.log",
    }


def test_each_role_as_its_supervisor_sees_it(
    doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = [
        _role("router-0", "ready"),
        _role("decode-0", "starting", "loads the model"),
        _role("prefill-0", "restarting", "killed by signal 9"),
    ]
    state = ClusterState(
        "id", "mine", "m.yaml", os.getpid(), start_ticks(os.getpid()), 0.0, "ready", roles=roles
    )
    state.write(tmp_path)
    assert doctor(arguments=("--run-dir", str(tmp_path), "--json")) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["router-0"]["status"] == "ok"
    assert (found["decode-0"]["status"], found["decode-0"]["advice"]) == (
        "note",
        "It is starting: loads the model",
    )
    assert found["prefill-0"]["status"] == "problem"
    assert "It is restarting: killed by signal 9. Its log: prefill-0.log" in found["prefill-0"]["advice"]
    assert doctor.subjects == [Subject(Path("m.yaml"), is_running=True)]


@pytest.mark.parametrize(
    ("security", "key"),
    [
        ({}, ""),
        ({"api_keys": [{"tenant": "a", "key": "of the manifest"}]}, "of the manifest"),
        ({"api_keys": [{"tenant": "a", "key_env": "NOWHERE_SET"}]}, None),
        ({"keys": {"file": "keys.json"}}, None),
    ],
)
def test_which_key_it_sends(tmp_path: Path, security: dict[str, Any], key: str | None) -> None:
    spec = {"models": {"primary": {"source": "hub:org/name"}}, "security": security}
    manifest = tmp_path / "llmserve.yaml"
    manifest.write_text(json.dumps({"kind": "LLMServe", "spec": spec}))
    assert known_key(manifest) == key
