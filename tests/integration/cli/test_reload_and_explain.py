"""Reload and explain on a real cluster of simulated engines with two apiservers: the example of batches."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from bench.cluster import Cluster, running
from llmserve.cli import main
from tests.support.simulated import simulated

pytestmark = pytest.mark.timeout(240)

PATIENCE_SECONDS = 30.0
KEYS = [
    {"tenant": "red", "key": "red-key"},
    {"tenant": "blue", "key": "blue-key"},
    {"tenant": "ops", "key": "ops-key", "admin": True},
]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Running:
    """A cluster, and its manifest to be changed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.path = Path(cluster.state()["manifest"])
        self.original = yaml.safe_load(self.path.read_text())
        self.urls: list[str] = cluster.state()["base_urls"]
        self._http = httpx.Client(timeout=30, limits=httpx.Limits(max_connections=100))
        self.model = self.original["spec"]["models"]["primary"]["name"]

    def close(self) -> None:
        self._http.close()

    def write(self, **sections: Any) -> None:
        """The original manifest with some keys of these sections changed."""
        manifest = deepcopy(self.original)
        for name, keys in sections.items():
            manifest["spec"].setdefault(name, {}).update(keys)
        self.path.write_text(yaml.safe_dump(manifest))

    def reload(self) -> "Done":
        return self.command("reload")

    def command(self, *arguments: str) -> "Done":
        """`llmserve ...`, in this process: a new one would import for seconds."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*arguments, "--run-dir", str(self.cluster.run_dir)])
        return Done(code, out.getvalue(), err.getvalue())

    def post(self, path: str, key: str = "ops-key", at: int = 0, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return self._http.post(f"{self.urls[at]}{path}", headers=headers, json=body)

    def get(self, path: str, key: str = "ops-key", at: int = 0) -> httpx.Response:
        return self._http.get(f"{self.urls[at]}{path}", headers={"authorization": f"Bearer {key}"})

    def complete(self, key: str = "red-key", at: int = 0, **body: Any) -> httpx.Response:
        defaults = {"model": self.model, "prompt": [7] * 300, "max_tokens": 3, "ignore_eos": True}
        return self.post("/v1/completions", key, at, **(defaults | body))

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """One request runs meanwhile, and goes on for as long as it is let."""
        body = {
            "model": self.model,
            "prompt": [5] * 40,
            "max_tokens": 4000,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"authorization": "Bearer ops-key"}
        with self._http.stream(
            "POST", f"{self.urls[0]}/v1/completions", headers=headers, json=body
        ) as answer:
            pieces = answer.iter_raw()  # kept: the stream is closed with it
            next(pieces)
            yield

    def explain(self, request_id: str, key: str, at: int = 0) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return self._http.get(f"{self.urls[at]}/v1/requests/{request_id}/explain", headers=headers)

    def output(self) -> str:
        return (self.path.parent / "up.log").read_text()

    def until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}\n{self.output()}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    manifest = simulated("batches.yaml")
    spec = manifest["spec"]
    spec["deployment"] = {
        "replicas": {"apiserver": 2, "prefill": 1, "decode": 1},
        "local": {"separate_ports": True},
    }
    spec["security"] = {"api_keys": KEYS}
    spec["engine"]["sim"] = {"decode_step_seconds": 0.02}
    spec["budgets"] = {"max_requests_in_flight": 4}
    with running(manifest) as cluster, closing(Running(cluster)) as made:
        yield made


@pytest.fixture
def it(shared: Running) -> Iterator[Running]:
    """With the original manifest again at the end."""
    yield shared
    shared.write()
    assert shared.reload().returncode == 0


def test_a_bad_file_changes_nothing_and_says_where(it: Running) -> None:
    it.path.write_text(it.path.read_text().replace("max_requests_in_flight: 4", "max_requests_in_flight: -4"))
    done = it.reload()
    assert done.returncode == 2
    line = next(n for n, text in enumerate(it.path.read_text().splitlines(), 1) if "-4" in text)
    assert f"llmserve.yaml:{line}: spec.budgets.max_requests_in_flight" in done.stderr
    answer = it.post("/admin/reload")
    assert answer.status_code == 400
    assert f"llmserve.yaml:{line}: " in answer.json()["error"]["message"]
    assert it.complete().status_code == 200


def test_the_endpoint_is_for_admins(it: Running) -> None:
    it.write(scheduling={"srpt_bias": 1.0}, engine={"max_model_len": 999})
    assert it.post("/admin/reload", key="").status_code == 401
    assert it.post("/admin/reload", key="nobody").status_code == 401
    assert it.post("/admin/reload", key="red-key").status_code == 403
    answer = it.post("/admin/reload", at=1)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["failed"] == []
    assert {"path": "scheduling.srpt_bias", "before": "5.0", "after": "1.0"} in said["live"]
    (left,) = said["needs_restart"]
    assert left["path"] == "engine.max_model_len"
    assert left["processes"] == ["apiserver-0", "apiserver-1", "prefill-0", "decode-0"]


def test_what_a_reload_would_change_is_shown_and_nothing_changes(it: Running) -> None:
    it.write(scheduling={"srpt_bias": 2.0})
    assert it.get("/admin/v1/manifest", key="red-key").status_code == 403
    for at in (0, 1):
        view = it.get("/admin/v1/manifest", at=at).json()
        assert [one["path"] for one in view["live"]] == ["scheduling.srpt_bias"]
        assert ("+", "srpt_bias: 2.0") in [(one["mark"], one["text"].strip()) for one in view["diff"][0]]
        assert "red-key" not in json.dumps(view)
        assert "srpt_bias" not in view["text"]
    done = it.command("reload", "--check", "--json")
    assert json.loads(done.stdout)["live"] == view["live"]
    assert it.reload().returncode == 0
    view = it.get("/admin/v1/manifest").json()
    assert (view["diff"], view["live"]) == ([], [])
    assert "srpt_bias: 2.0" in view["text"]


def test_the_list_of_requests_has_those_of_all_apiservers(it: Running) -> None:
    def look(key: str = "ops-key", after: str = "") -> tuple[dict[str, str], str]:
        found = it.get(f"/admin/v1/requests?after={after}", key).raise_for_status().json()
        assert found["problem"] is None
        ended = [one for one in found["requests"] if not one["running"]]
        return {one["request_id"]: one["instance"].partition("@")[0] for one in ended}, found["after"]

    ids = [it.complete(at=at).headers["x-request-id"] for at in (0, 1)]
    it.until(lambda: set(ids) <= look()[0].keys(), "both have ended")
    rows, after = look()
    assert [rows[one] for one in ids] == ["apiserver-0", "apiserver-1"]
    assert set(ids) <= set(look("red-key")[0])
    assert set(ids).isdisjoint(look("blue-key")[0])
    new = it.complete(at=1).headers["x-request-id"]
    it.until(lambda: look(after=after)[0] == {new: "apiserver-1"}, "only what is new is listed")
    assert it.get("/admin/v1/requests?after=x").status_code == 400


@pytest.mark.parametrize(("heavy", "light"), [("red", "blue"), ("blue", "red")])
def test_weights_take_effect_on_what_waits(it: Running, heavy: str, light: str) -> None:
    """Twelve requests of each of two tenants wait for the one place; then the weights change."""
    it.write(budgets={"max_requests_in_flight": 1})
    assert it.reload().returncode == 0
    ended: list[str] = []

    def send(tenant: str) -> None:
        assert it.complete(f"{tenant}-key", max_tokens=2, prompt=[3] * 40).status_code == 200
        ended.append(tenant)

    with ThreadPoolExecutor(24) as pool:
        with it.occupied():
            sent = [pool.submit(send, tenant) for _ in range(12) for tenant in (light, heavy)]
            it.until(lambda: it.cluster.metrics("router-0")["router_queued_requests"] == 24, "24 wait")
            weights = [{"tenant": heavy, "weight": 8}]
            it.write(budgets={"max_requests_in_flight": 1}, scheduling={"weights": weights})
            assert "live: scheduling.weights: changed" in it.reload().stdout
        for future in sent:
            future.result()
    assert ended[:12].count(heavy) >= 9, ended


def test_keys_come_and_go_everywhere(it: Running) -> None:
    it.write(security={"api_keys": [*KEYS[1:], {"tenant": "red", "key": "new-key"}]})
    assert it.reload().stdout == "live: security.api_keys: changed\n"
    for at in (0, 1):
        assert it.complete("new-key", at).status_code == 200
        assert it.complete("red-key", at).status_code == 401


def test_a_key_that_an_apiserver_does_not_have_changes_nothing(it: Running) -> None:
    it.write(
        security={"api_keys": [*KEYS, {"tenant": "x", "key_env": "NO_SUCH_KEY"}]},
        scheduling={"srpt_bias": 0.5},
    )
    done = it.reload()
    assert done.returncode == 2
    assert "NO_SUCH_KEY" in done.stderr
    assert "nothing was changed" in done.stderr
    it.write(scheduling={"srpt_bias": 0.5})
    assert "srpt_bias: 5.0 -> 0.5" in it.reload().stdout


def test_sighup_reloads(it: Running) -> None:
    it.write(scheduling={"aging_seconds": 33.0})
    os.kill(it.cluster.supervisor.pid, signal.SIGHUP)
    it.until(lambda: "scheduling.aging_seconds: 20.0 -> 33.0" in it.output(), "a reload")
    assert it.complete().status_code == 200


def test_the_log_level_reaches_router_apiservers_and_workers(it: Running) -> None:
    it.write(observability={"log_level": "debug"})
    done = it.reload()
    assert "live: observability.log_level: info -> debug" in done.stdout
    assert "left: observability.log_level: needs a restart of kvmanager-0" in done.stdout
    assert it.complete().status_code == 200
    told = "the log level is debug from now on"
    for name in ("router-0", "apiserver-0", "apiserver-1", "prefill-0", "decode-0"):
        log = Path(it.cluster.role(name)["log"])
        it.until(lambda log=log: told in log.read_text(), f"the level of {name}")  # type: ignore[misc]


def test_a_decode_worker_may_run_whole_requests(it: Running) -> None:
    """Nothing is handed over then, and nothing is said of it."""
    it.write(scheduling={"disaggregate": "never"})
    assert it.reload().returncode == 0
    before = _placed(it.cluster)
    answer = it.complete(max_tokens=4).raise_for_status()
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert not [name for name in answer.headers if name.startswith("x-llmserve-")]
    assert [now - then for now, then in zip(_placed(it.cluster), before, strict=True)] == [1, 1, 1]
    assert it.cluster.metrics("decode-0")["kv_leased_blocks"] == 0


def _placed(cluster: Cluster) -> list[float]:
    """Requests so far that ran on one worker, and those whose first token was timed and was predicted."""
    samples = cluster.metrics("router-0")
    timed = [f"router_{name}first_token_seconds_count" for name in ("", "predicted_")]
    return [samples.get(name, 0.0) for name in ('router_placement_kinds_total{kind="single"}', *timed)]


def test_another_file_is_refused(it: Running, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(it.path.read_text())
    err = StringIO()
    with redirect_stderr(err):
        assert main(["reload", "-f", str(other)]) == 2
    assert f"was started with {it.path}" in err.getvalue()


def test_a_request_is_explained_by_either_id_at_either_apiserver(it: Running) -> None:
    answer = it.complete(prompt=[9] * 200)
    request_id, response_id = answer.headers["x-request-id"], answer.json()["id"]
    for at, name in enumerate((request_id, response_id)):
        found = it.explain(name, "red-key", at)
        assert found.status_code == 200, found.text
        record = found.json()
        assert (record["request_id"], record["tenant"]) == (request_id, "red")
        assert response_id in record["response_ids"]
        assert record["apiserver"] == "apiserver-0"
        (sequence,) = record["sequences"]
        assert sequence["outcome"] == "completed"
        assert (sequence["prompt_tokens"], sequence["output_tokens"]) == (200, 3)
        (attempt,) = sequence["attempts"]
        assert attempt["decode"] == "decode-0"
        times = (attempt["asked_seconds"], attempt["placed_seconds"], sequence["first_token_seconds"])
        assert list(times) == sorted(times)
        assert sequence["first_token_seconds"] < sequence["ended_seconds"] <= record["seconds"]


def test_only_its_tenant_and_admins_may_read_a_record(it: Running) -> None:
    request_id = it.complete().headers["x-request-id"]
    assert it.explain(request_id, "red-key").status_code == 200
    assert it.explain(request_id, "ops-key", at=1).status_code == 200
    assert it.explain(request_id, "blue-key").status_code == 404
    assert it.explain(request_id, "nobody").status_code == 401
    assert it.explain("no-such-request", "ops-key").status_code == 404


def test_a_clients_own_request_id_is_kept(it: Running) -> None:
    headers = {"authorization": "Bearer red-key", "x-request-id": "mine-1"}
    body = {"model": it.model, "prompt": [1, 2, 3], "max_tokens": 2}
    answer = httpx.post(f"{it.urls[0]}/v1/completions", headers=headers, json=body, timeout=30)
    assert answer.headers["x-request-id"] == "mine-1"
    assert it.explain("mine-1", "red-key").json()["sequences"][0]["outcome"] == "completed"


def test_what_it_waited_for_is_told(it: Running) -> None:
    it.write(budgets={"max_requests_in_flight": 1})
    assert it.reload().returncode == 0
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: it.complete(max_tokens=25), range(6)))
    queues = []
    for answer in answers:
        record = it.explain(answer.headers["x-request-id"], "red-key").json()
        queues.append(record["sequences"][0]["attempts"][0]["queue"])
    waited = [queue for queue in queues if queue["seconds"] > 0.1]
    assert len(waited) >= 4
    assert all(0.5 * q["seconds"] < q["used_up_seconds"]["requests in flight"] for q in waited), waited
    assert max(queue["requests_ahead"] for queue in queues) >= 1


def test_a_refused_request_has_a_record_too(it: Running) -> None:
    it.write(budgets={"max_requests_in_flight": 4, "max_tokens_in_flight": 5})
    assert it.reload().returncode == 0
    answer = it.complete()
    assert answer.status_code == 400
    record = it.explain(answer.headers["x-request-id"], "red-key").json()
    assert record["status"] == 400
    assert "budgets.max_tokens_in_flight allows 5" in record["error"]
    assert record["sequences"][0]["outcome"] == "rejected"


def test_explain_on_the_command_line(it: Running, tmp_path: Path) -> None:
    response_id = it.complete(at=1).json()["id"]
    done = it.command("explain", response_id)
    assert done.returncode == 0, done.stderr
    assert "apiserver-1" in done.stdout
    assert "decode-0" in done.stdout
    trace = tmp_path / "trace.json"
    as_json = json.loads(it.command("explain", response_id, "--json", "--trace", str(trace)).stdout)
    assert as_json["response_ids"][0] == response_id
    assert "prefill" in {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    unknown = it.command("explain", "no-such-request")
    assert unknown.returncode == 2
    assert "no-such-request" in unknown.stderr


def test_how_many_are_remembered_is_live(it: Running) -> None:
    old = it.complete().headers["x-request-id"]
    it.write(observability={"explain_requests": 1})
    assert it.reload().returncode == 0
    assert it.complete().status_code == 200
    it.until(lambda: it.explain(old, "red-key").status_code == 404, "forgetting")
