"""A cluster on a machine that has none of the optional packages."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from bench.cluster import Cluster, running

ROOT = Path(__file__).parents[3]
OPTIONAL = ("nixl", "ucxx")
ALWAYS_THERE = {"shm", "tcp"}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("PYTHONPATH", path)
    manifest = yaml.safe_load((ROOT / "examples" / "sim.yaml").read_text())
    manifest["spec"]["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    manifest["spec"]["scheduling"] = {"disaggregate": "always"}
    manifest["spec"]["transfer"] = {"engine_order": ["nixl", "ucx"]}
    with running(manifest) as started:
        yield started


def test_it_serves_and_says_what_it_lacks(cluster: Cluster) -> None:
    body = {"model": cluster.state()["model"], "prompt": list(range(300, 500)), "max_tokens": 4}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30).raise_for_status()
    assert answer.headers["x-llmserve-transport"] in ALWAYS_THERE
    assert "x-llmserve-fallback" not in answer.headers
    command = (sys.executable, "-m", "llmserve.cli", "status", "--json", "--run-dir", str(cluster.run_dir))
    status = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for name in OPTIONAL:
        assert f"No module named '{name}'" in status
