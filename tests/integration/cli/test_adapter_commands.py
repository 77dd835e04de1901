"""Adapters on a real cluster of simulated engines: `llmserve adapters`, HTTP, and requests that use them."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster, running
from llmserve.cli import main
from llmserve.config.schema.models import ModelSpec
from llmserve.models import resolve
from tests.support.adapters import AdapterShape, random_adapter
from tests.support.simulated import simulated

pytestmark = pytest.mark.timeout(240)


class Adapted:
    """A cluster that may load what is below `folder`."""

    def __init__(self, cluster: Cluster, folder: Path, model: ModelSpec) -> None:
        self.cluster, self.folder, self.model = cluster, folder, model.served_name
        self._base = Path(resolve(model).path)
        self.http = httpx.Client(base_url=cluster.url, timeout=60)

    def adapter(self, name: str, seed: int) -> str:
        """Makes an adapter; returns its source."""
        shape = AdapterShape(rank=1, modules=("q_proj",))
        return f"dir:{random_adapter(self.folder / name, self._base, seed, shape)}"

    def command(self, *arguments: str) -> Any:
        """`llmserve adapters ... --json`."""
        return self.llmserve("adapters", *arguments)

    def llmserve(self, *arguments: str) -> Any:
        """`llmserve ... --json`, in this process. Returns what it printed, or its error."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*arguments, "--json", "--run-dir", str(self.cluster.run_dir)])
        return json.loads(out.getvalue()) if code == 0 else err.getvalue()

    def complete(self, tokens: int = 3, **fields: Any) -> httpx.Response:
        body = {"prompt": [7] * 100, "max_tokens": tokens, "ignore_eos": True, **fields}
        return self.http.post("/v1/completions", json=body)

    def sequence_of(self, answer: httpx.Response) -> Any:
        """What is remembered of the request."""
        return self.http.get(f"/v1/requests/{answer.json()['id']}/explain").json()["sequences"][0]

    def adapter_of(self, answer: httpx.Response) -> Any:
        return self.sequence_of(answer)["adapter"]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    """The example, with fewer workers, and adapters of the test's."""
    folder = tmp_path_factory.mktemp("adapters")
    manifest = simulated("adapters.yaml")
    spec = manifest["spec"]
    spec["deployment"] = {"replicas": {"prefill": 1, "decode": 1}}
    spec["lora"] |= {"slots": 2, "allowed_sources": [f"dir:{folder}"]}
    spec["engine"]["sim"] = {"decode_step_seconds": 0.005}
    spec["scheduling"] = {"disaggregate": "always"}
    with running(manifest) as cluster:
        found = Adapted(cluster, folder, ModelSpec.model_validate(spec["models"]["primary"]))
        yield found
        found.http.close()


def test_an_adapter_from_its_load_to_its_end(adapted: Adapted) -> None:
    loaded = adapted.command("load", "sql", adapted.adapter("sql", 1))
    assert isinstance(loaded, dict), loaded  # else an error's text
    assert loaded["state"] == "ready", loaded
    cards = {card["id"]: card for card in adapted.http.get("/v1/models").json()["data"]}
    assert cards["sql"]["parent"] == adapted.model
    answer = adapted.complete(model="sql")
    assert (answer.status_code, answer.json()["model"]) == (200, "sql"), answer.text
    explained = adapted.adapter_of(answer)
    assert explained["version"] == loaded["version"]
    assert {load["leg"] for load in explained["loads"]} == {"prefill", "decode"}
    again = adapted.adapter_of(adapted.complete(model="sql"))
    assert {load["tier"] for load in again["loads"]} == {"device"}
    assert all(load["seconds"] < 0.5 for load in again["loads"]), "nobody waits for what is in a slot"
    assert adapted.adapter_of(adapted.complete(model=adapted.model)) is None
    (row,) = adapted.llmserve("status")["adapters"]
    assert row == adapted.command("show", "sql")[0]
    assert {place["worker"] for place in row["workers"]} == {"prefill-0", "decode-0"}
    adapted.command("unload", "sql")
    assert adapted.complete(model="sql").status_code == 404
    assert adapted.command("ls") == []
    assert "no adapter" in adapted.command("unload", "sql")


def test_a_name_moves_to_other_weights_while_requests_run(adapted: Adapted) -> None:
    old = adapted.command("load", "moving", adapted.adapter("old", 2))["version"]
    with ThreadPoolExecutor(4) as threads:
        before = [threads.submit(adapted.complete, 150, model="moving") for _ in range(4)]
        new = adapted.command("load", "moving", adapted.adapter("new", 3))["version"]
        after = [threads.submit(adapted.complete, 3, model="moving") for _ in range(4)]
        answers = [future.result() for future in (*before, *after)]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {adapted.adapter_of(answer)["version"] for answer in answers[:4]} <= {old, new}
    assert {adapted.adapter_of(answer)["version"] for answer in answers[4:]} == {new}


def test_explain_says_what_workers_did_while_a_request_waited_for_a_slot(adapted: Adapted) -> None:
    for seed, name in enumerate(("busy", "other"), 5):
        adapted.command("load", name, adapted.adapter(name, seed))
        adapted.complete(model=name)  # it has a slot from now on
    adapted.command("load", "far", adapted.adapter("far", 7))
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(adapted.complete, 800, model=name) for name in ("busy", "other")]
        while sum(row["running_requests"] for row in adapted.command("ls")) < 2:
            pass
        answer = adapted.complete(model="far")
        assert [future.result().status_code for future in running] == [200, 200]
    queue = adapted.sequence_of(answer)["attempts"][0]["queue"]
    assert queue["seconds"] > 0.1
    assert {(one["worker"], one["tier"]) for one in queue["prefetches"]} == {
        ("prefill-0", "disk"),
        ("decode-0", "disk"),
    }
    assert all(0 < one["seconds"] < queue["seconds"] for one in queue["prefetches"])
    assert {load["tier"] for load in adapted.adapter_of(answer)["loads"]} <= {"dram", "device"}


def test_a_source_in_a_request_is_loaded_for_it(adapted: Adapted) -> None:
    answer = adapted.complete(lora_path=adapted.adapter("asked", 4))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"].startswith("asked-")
    assert adapted.adapter_of(answer)["name"] == answer.json()["model"]
    missing = adapted.complete(lora_path=f"dir:{adapted.folder}/none")
    assert missing.status_code == 404, missing.text
    outside = adapted.complete(lora_path="dir:/etc")
    assert (outside.status_code, "lora.allowed_sources" in outside.text) == (400, True)
    named = [row["state"] for row in adapted.command("ls") if row["name"].startswith("none-")]
    assert named in ([], ["draining"])  # until its worker has heard that it is not wanted


def test_what_operators_ask_over_http(adapted: Adapted) -> None:
    body = {"lora_name": "legal", "lora_path": adapted.adapter("legal", 5).removeprefix("dir:")}
    loaded = adapted.http.post("/v1/load_lora_adapter", json=body)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'legal' added successfully.")
    near = adapted.http.post("/admin/v1/adapters/legal/prefetch", json={"tier": "device"})
    assert {place["tier"] for place in near.json()["workers"]} == {"device"}, near.text
    first = adapted.adapter_of(adapted.complete(model="legal"))
    assert {load["tier"] for load in first["loads"]} == {"device"}
    assert adapted.http.post("/admin/v1/adapters/legal/pin").json()["pinned"]
    assert not adapted.http.delete("/admin/v1/adapters/legal/pin").json()["pinned"]
    gone = adapted.http.delete("/admin/v1/adapters/legal", params={"wait": True})
    assert (gone.status_code, gone.json()["state"]) == (200, "gone"), gone.text
