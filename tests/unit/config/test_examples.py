"""The manifests we ship load, and make a plan without complaints."""

import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmserve.config.load import load_manifest
from llmserve.config.plan import plan_local

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "llmserve.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_loads_and_plans(path: Path) -> None:
    manifest = load_manifest(path)
    plan = plan_local(manifest, range(8), itertools.count(5000).__next__, gpus=range(8))
    assert plan.notes == ()
    assert plan.processes[-1].name


def test_the_examples_are_there() -> None:
    assert {path.name for path in FILES} >= {"gpu.yaml", "sim.yaml", "aggregated.yaml", "two-routers.yaml"}


def test_the_default_is_the_packaged_model_on_two_cores() -> None:
    manifest = load_manifest(ROOT / "llmserve.yaml")
    plan = plan_local(manifest, (0, 1), itertools.count(5000).__next__)
    assert [process.cores for process in plan.processes if process.role.is_worker] == [(0,), (1,)]
    assert manifest.model.served_name == "SmolLM2-135M-Instruct"
    package, _, file = manifest.model.source.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is not None and spec.origin is not None:  # the `cpu` extra is installed
        assert (Path(spec.origin).parent / file).is_file()
