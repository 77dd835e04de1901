"""`llmserve doctor` as a user types it: the real command on this machine. test_one_port.py has a cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmserve.transfer.select import makers
from tests.support.quick_doctor import quick_doctor

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(120)


def _doctor(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmserve.cli", "doctor", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=env, cwd=ROOT
    )


def _findings(done: "subprocess.CompletedProcess[str]") -> dict[tuple[str, str], dict[str, Any]]:
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["healthy"] else 1)
    return {(one["section"], one["name"]): one for one in told["findings"]}


def _shims(folder: Path, **codes: str) -> str:
    """A PYTHONPATH on which these packages are something else."""
    for package, code in codes.items():
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(code)
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


def test_every_transport_of_this_version_is_tried_here() -> None:
    findings = _findings(_doctor("-f", str(ROOT / "examples" / "sim.yaml"), "--json"))
    assert not [one for one in findings.values() if one["value"] == "not checked"]
    for kind in makers("127.0.0.1"):
        found = findings["transports", kind]
        usable = "gigabytes_per_second" in found["figures"]
        assert usable or "not usable" in found["value"], found
    assert findings["transports", "tcp"]["figures"]["gigabytes_per_second"] > 0.01
    assert findings["transports", "baseline"]["figures"]["copy_gigabytes_per_second"] > 0.01
    assert findings["manifest", "manifest"]["status"] == "ok"
    assert findings["cluster", "cluster"]["value"] == "none runs here"


def test_people_see_every_section_a_wrong_manifest_with_its_line_and_a_summary(tmp_path: Path) -> None:
    wrong = tmp_path / "llmserve.yaml"
    wrong.write_text((ROOT / "llmserve.yaml").read_text().replace("prefill: 1", "prefil: 1"))
    done = quick_doctor("-f", str(wrong))
    lines = done.stdout.splitlines()
    assert [
        line for line in lines if line in ("Machine", "Software", "Transports", "Manifest", "Cluster")
    ] == [*("Machine", "Software", "Transports", "Manifest", "Cluster")]
    assert not [line for line in lines if line != line.rstrip()]
    assert "\x1b" not in done.stdout
    assert ["problem", "manifest"] in [line.split()[:2] for line in lines]
    assert f"{wrong}:23: spec.deployment.replicas.prefil" in " ".join(done.stdout.split())
    assert lines[-1].startswith("Something will not work: ")
    assert (done.returncode, done.stderr) == (1, "")


def test_a_library_that_cannot_be_imported_and_one_that_crashes(tmp_path: Path) -> None:
    path = _shims(
        tmp_path,
        nixl="raise ImportError('libnixl.so: cannot open shared object file')",
        ucxx="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    )
    findings = _findings(_doctor("-f", str(ROOT / "examples" / "sim.yaml"), "--json", PYTHONPATH=path))
    nixl, ucx = findings["transports", "nixl"], findings["transports", "ucx"]
    assert nixl["status"] == "note"  # in the default order, but the manifest does not name it
    assert nixl["value"] == (
        "not usable: cannot be imported: ImportError: libnixl.so: cannot open shared object file"
    )
    assert "pip install --no-deps" in nixl["advice"]
    assert (ucx["status"], ucx["value"]) == ("problem", "crashed: killed by SIGSEGV")
    assert findings["transports", "tcp"]["figures"]["gigabytes_per_second"] > 0.01
    assert ("manifest", "engines") in findings
