"""One real cluster for all e2e tests, started as a user starts it; and what AsyncLLM alone answers.

The reference runs before the cluster, so that neither takes the other's cores.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from bench.cluster import Cluster, running

ROOT = Path(__file__).parents[2]
PARITY_PROMPTS = 50
PARITY_OUTPUT_TOKENS = 16
# The first test waits for the reference and the start of the cluster.
_TEST_TIMEOUT_SECONDS = 900
_WITH_CLUSTERS_OF_THEIR_OWN = ("test_speculation.py", "test_store.py", "test_two_models.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_TEST_TIMEOUT_SECONDS))
    items.sort(key=lambda item: item.path.name in _WITH_CLUSTERS_OF_THEIR_OWN)


@pytest.fixture(scope="session")
def adapters_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cluster may load adapters from below this directory."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="session")
def manifest(adapters_root: Path) -> dict[str, Any]:
    """Every request is handed over, however short: that is what most tests are about. Two clusters run at
    times, beside other tests, and get less memory than a user's."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "llmserve.yaml").read_text())
    loaded["spec"]["kv_cache"]["memory_gb"] = 0.4
    loaded["spec"]["scheduling"] = {"disaggregate": "always"}
    loaded["spec"]["lora"] = {"slots": 2, "max_rank": 8, "allowed_sources": [f"dir:{adapters_root}"]}
    return loaded


@pytest.fixture(scope="session")
def model_dir(manifest: dict[str, Any]) -> str:
    from llmserve.config.load import load_manifest
    from llmserve.models import resolve

    loaded = load_manifest(ROOT / "llmserve.yaml")
    return str(resolve(loaded.model).path)


@pytest.fixture(scope="session")
def parity_cases() -> list[dict[str, Any]]:
    """Prompts of 10 to 1,500 tokens, from one seed: as many of 20 as of 200, since computing them all, once
    for the reference and once in the cluster, takes minutes. Token ids that are ordinary words."""
    rng = random.Random(20)
    lengths = [10, 1500, *(int(10 * 70 ** rng.random()) for _ in range(PARITY_PROMPTS - 2))]
    return [
        {"prompt": [rng.randint(300, 20_000) for _ in range(length)], "max_tokens": PARITY_OUTPUT_TOKENS}
        for length in lengths
    ]


@pytest.fixture(scope="session")
def reference(
    manifest: dict[str, Any],
    model_dir: str,
    parity_cases: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[list[int]]:
    folder = tmp_path_factory.mktemp("reference")
    job = {
        "model": model_dir,
        "max_model_len": manifest["spec"]["engine"]["max_model_len"],
        "cases": parity_cases,
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(Path(__file__).parent / "reference.py"), "job.json", "answers.json"]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with open(folder / "log", "wb") as log:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=600,
        )
    answers: list[list[int]] = json.loads((folder / "answers.json").read_text())
    return answers


@pytest.fixture(scope="session")
def before_the_store() -> Iterator[ExitStack]:
    """Closed where another cluster is started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def cluster(manifest: dict[str, Any], reference: list[list[int]], before_the_store: ExitStack) -> Cluster:
    return before_the_store.enter_context(running(manifest))


@pytest.fixture(scope="session")
def url(cluster: Cluster) -> str:
    return cluster.url


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def disaggregating(cluster: Cluster, http: httpx.Client) -> Callable[[str], AbstractContextManager[None]]:
    """The running cluster with another `scheduling.disaggregate`; and as it was afterwards."""

    @contextmanager
    def change(when: str) -> Iterator[None]:
        path = Path(cluster.state()["manifest"])
        original = path.read_text()
        changed = yaml.safe_load(original)
        changed["spec"]["scheduling"]["disaggregate"] = when
        try:
            path.write_text(yaml.safe_dump(changed))
            changes = http.post("/admin/reload").raise_for_status().json()["live"]
            assert [change["path"] for change in changes] == ["scheduling.disaggregate"]
            yield
        finally:
            path.write_text(original)
            http.post("/admin/reload").raise_for_status()

    return change
