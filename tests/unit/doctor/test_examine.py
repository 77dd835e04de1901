"""The sections as a whole, with trials that take no time."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmserve.doctor import Finding, FindingSection, Status, ok
from llmserve.doctor.examine import Subject, examine, section
from llmserve.doctor.measure import COPY, READ, SOCKET
from llmserve.doctor.trial import BASELINE, NEAR, TrialOutcome, TrialReport
from llmserve.transfer.select import makers
from tests.unit.conftest import MakeHost

_ROOT_MANIFEST = Path(__file__).parents[3] / "llmserve.yaml"
_SIM = Path(__file__).parents[3] / "examples" / "sim.yaml"
_ANSWERS = {
    BASELINE[1]: TrialReport(TrialOutcome.MEASURED, rates={COPY: 5e9, SOCKET: 5e9}),
    NEAR[1]: TrialReport(TrialOutcome.MEASURED, rates={READ: 5e9}),
}


@pytest.fixture(autouse=True)
def _no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["llmserve.doctor.examine"]
    monkeypatch.setattr(module, "run_trial", lambda module, side, *kind: _ANSWERS[side])


def _by_title(subject: Subject) -> dict[str, FindingSection]:
    return {one.title: one for one in examine(subject, lambda step: None)}


def _names(one: FindingSection) -> list[str]:
    return [finding.name for finding in one.findings]


def test_every_section_of_this_machine() -> None:
    sections = _by_title(Subject(_SIM))
    assert list(sections) == ["Machine", "Software", "Transports", "Manifest", "Security"]
    assert not [one for each in sections.values() for one in each.findings if one.value == "not checked"]
    assert {"cores", "memory", "/dev/shm", "RDMA", "GPUs"} <= set(_names(sections["Machine"]))
    assert {"python", "vllm", "grpcio", "nixl", "obstore"} <= set(_names(sections["Software"]))
    assert _names(sections["Transports"]) == ["baseline", *makers("127.0.0.1")]
    assert _names(sections["Manifest"]) == [
        *("manifest", "environment", "model", "start", "engines", "port", "run directory")
    ]


def test_every_check_is_documented_and_its_name_is_there_once() -> None:
    text = (_SIM.parents[1] / "docs" / "doctor.md").read_text()
    sections = [*_by_title(Subject(_SIM)).values(), *_by_title(Subject(_ROOT_MANIFEST)).values()]
    for one in sections:
        assert len(set(_names(one))) == len(_names(one))
        transports = makers("127.0.0.1") if one.title == "Transports" else {}
        assert [name for name in _names(one) if f"`{name}`" not in text and name not in transports] == []


def test_steps_are_told_before_they_are_done() -> None:
    steps: list[str] = []
    sections = examine(Subject(None), steps.append)
    assert next(sections).title == "Machine"
    assert steps == []
    list(sections)
    assert [step for step in steps if step == "Measuring tcp"]


def test_faults_that_were_forgotten_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_FAULTS", "tcp: stall=1/8")
    found = _by_title(Subject(None))["Transports"].findings[0]
    assert (found.name, found.status, found.value) == ("faults", Status.WARNING, "tcp: stall=1/8")


def test_without_a_manifest() -> None:
    found = _by_title(Subject(None))["Manifest"].findings
    assert [(one.name, one.status) for one in found] == [("manifest", Status.NOTE)]


def test_after_a_wrong_manifest_nothing_of_it_is_checked(tmp_path: Path) -> None:
    found = _by_title(Subject(tmp_path / "none.yaml"))["Manifest"].findings
    assert [(one.name, one.status) for one in found] == [("manifest", Status.PROBLEM)]


def test_a_running_cluster_holds_its_own_ports_and_memory() -> None:
    names = _names(_by_title(Subject(_SIM, is_running=True))["Manifest"])
    assert "engines" in names
    assert not {"port", "engine memory"} & set(names)


def test_cpu_engines_need_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("kind: LLMServe\nmodels: {primary: {source: hub:a/b}}\nengine: {device: cpu}\n")
    assert "engine memory" in _names(_by_title(Subject(path))["Manifest"])


@pytest.mark.parametrize("is_head_of_hub", [False, True])
def test_engines_need_memory_for_their_draft_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_head_of_hub: bool
) -> None:
    """A head has no tokenizer."""
    for name in ("model", "draft"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / name / file).write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(1000))
    path, draft = tmp_path / "m.yaml", tmp_path / "draft"
    model, source = f"{{primary: {{source: 'dir:{tmp_path}/model'}}}}", f"dir:{draft}"
    if is_head_of_hub:
        (draft / "tokenizer.json").unlink()
        monkeypatch.setattr(sys.modules["llmserve.models.resolve"], "cached_snapshot", lambda *asked: draft)
        source = "hub:o/head"

    def findings(speculation: str) -> dict[str, Finding]:
        path.write_text(f"kind: LLMServe\nmodels: {model}\nengine: {{device: cpu{speculation}}}\n")
        return {one.name: one for one in _by_title(Subject(path))["Manifest"].findings}

    plain = findings("")
    drafted = findings(f", speculation: {{draft: {{source: '{source}'}}}}")
    assert "draft model" not in plain
    assert drafted["draft model"].figures["weight_bytes"] == 1000
    needed = [found["engine memory"].figures["needed_bytes"] for found in (plain, drafted)]
    assert needed[1] - needed[0] == 2 * 1000, "two engines"


def test_a_machine_that_tells_nothing_is_no_crash(make_host: MakeHost) -> None:
    sections = list(examine(Subject(None), lambda step: None, make_host({})))
    values = {one.name: one.value for one in sections[0].findings}
    assert values["memory"] == "unknown"
    assert values["/dev/shm"] == "not there"


def test_one_check_that_fails_keeps_the_others(make_host: MakeHost) -> None:
    host = make_host({"proc/sys/net/ipv4/tcp_rmem": "not numbers"})
    findings = {one.name: one for one in next(examine(Subject(None), print, host)).findings}
    assert findings["socket buffers"].value == "not checked"
    assert "ValueError" in findings["socket buffers"].advice
    assert findings["RDMA"].value == "none"


def test_a_section_that_breaks_off_keeps_what_it_has() -> None:
    def findings() -> Iterator[Finding]:
        yield ok("first", "x")
        raise KeyError("roles")

    first, broken = section("Cluster", findings()).findings
    assert (first.name, broken.name, broken.status) == ("first", "cluster", Status.WARNING)
