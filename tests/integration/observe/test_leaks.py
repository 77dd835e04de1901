"""Nothing that is a client's is in what a busy cluster writes, shows or sends: logs, state, traces, metrics,
records.

Each secret text is one that occurs nowhere else. Files of batches are left out: they are what they keep.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from bench.cluster import Cluster, running
from tests.support.otlp import OtlpReceiver, otlp_receiver
from tests.support.simulated import simulated

MODEL = "SmolLM2-135M-Instruct"
pytestmark = pytest.mark.timeout(240)


def secret(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


RED, BLUE, ADMIN, UNKNOWN = (secret("key") for _ in range(4))
PROMPT, SALT, STOP, USER, TOOL, GRAMMAR = (secret("text") for _ in range(6))
ADAPTER, OTLP_TOKEN, REDIRECT = secret("adapter"), secret("otlp"), secret("url")
CANARIES = {
    name: value
    for name, value in list(globals().items())
    if isinstance(value, str) and name.isupper() and name not in ("MODEL",)
}
MESSAGES = [{"role": "user", "content": f"say {PROMPT}"}]
CHAT = {
    "model": MODEL,
    "messages": MESSAGES,
    "max_tokens": 24,
    "user": USER,
    "cache_salt": SALT,
    "stop": [STOP],
}


def said(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


IMAGE = {"type": "image_url", "image_url": {"url": f"http://localhost/{REDIRECT}"}}
# Fields that are wrong or odd, in ways that vLLM and pydantic answer with what they were given.
ODD: tuple[tuple[str, dict[str, Any]], ...] = (
    *(
        ("/v1/chat/completions", CHAT | fields)
        for fields in (
            {"messages": PROMPT},
            {"messages": said(PROMPT, role=PROMPT)},
            {"messages": said([{"type": PROMPT}])},
            {"messages": said([IMAGE])},
            {"messages": said(f"{PROMPT} " * 9000)},
            {"temperature": PROMPT},
            {"max_tokens": -1},
            {"stop": {"a": STOP}},
            {"stop": [STOP] * 50},
            {"cache_salt": f"{SALT}/@"},
            {"logit_bias": {PROMPT: 1}},
            {"tools": [{"type": "function", "function": {"description": TOOL}}]},
            {"structured_outputs": {"regex": f"({GRAMMAR}"}},
            {"structured_outputs": {"grammar": GRAMMAR}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": 1, "schema": GRAMMAR}}},
            {"chat_template": "{{ raise_exception('" + PROMPT + "') }}"},
            {"chat_template": "{{ " + PROMPT},
            {"request_id": f"{USER} /"},
            {"kv_transfer_params": {"a": PROMPT}},
        )
    ),
    *(
        (path, {"model": MODEL, **fields})
        for path, fields in (
            ("/v1/completions", {"prompt": {"a": PROMPT}}),
            ("/v1/completions", {"prompt": [PROMPT, 1]}),
            ("/v1/completions", {"prompt": PROMPT, "lora_path": f"dir:/{ADAPTER}"}),
            ("/v1/responses", {"input": [{"type": PROMPT}]}),
            ("/v1/responses", {"input": PROMPT, "previous_response_id": USER}),
            ("/v1/responses", {"input": PROMPT, "tools": [{"type": TOOL}]}),
            ("/v1/messages", {"messages": said([{"type": PROMPT}]), "max_tokens": 2}),
            ("/v1/messages", {"messages": MESSAGES, "max_tokens": 2, "tools": [{"name": TOOL}]}),
            ("/generate", {"prompts": {"a": PROMPT}}),
            ("/tokenize", {"messages": [{"role": PROMPT}]}),
            ("/detokenize", {"tokens": [PROMPT]}),
        )
    ),
)


@dataclass
class Written:
    """What was written, shown or sent, by where."""

    texts: dict[str, str] = field(default_factory=dict)

    def leaks(self, canaries: dict[str, str]) -> list[str]:
        return sorted(
            f"{name} in {where}: ...{text[max(0, text.index(value) - 150) : text.index(value) + 60]!r}"
            for where, text in self.texts.items()
            for name, value in canaries.items()
            if value in text
        )


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as started:
        yield started


@pytest.fixture(scope="module")
def cluster(receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    manifest = simulated("sim.yaml")
    spec = manifest["spec"]
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    spec["lora"] = {"allowed_sources": [f"dir:{tmp_path_factory.mktemp('adapters')}"]}
    spec["api"] = {"response_store": {"enabled": True}}
    spec["observability"] = {"tracing": {"endpoint": receiver.endpoint}}
    names = {"RED_KEY": "red", "BLUE_KEY": "blue"}
    keys: list[dict[str, Any]] = [{"tenant": tenant, "key_env": name} for name, tenant in names.items()]
    spec["security"] = {"api_keys": [*keys, {"tenant": "ops", "key_env": "OPS_KEY", "admin": True}]}
    environment = {
        "RED_KEY": RED,
        "BLUE_KEY": BLUE,
        "OPS_KEY": ADMIN,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-token={OTLP_TOKEN}",
    }
    with mock.patch.dict(os.environ, environment), running(manifest) as started:
        yield started


def ask(cluster: Cluster, path: str, body: Any, key: str = RED) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{cluster.url}{path}", json=body, headers=headers, timeout=60)


def get(cluster: Cluster, path: str, key: str) -> httpx.Response:
    return httpx.get(f"{cluster.url}{path}", headers={"x-api-key": key}, timeout=60)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def command(cluster: Cluster, *arguments: str) -> str:
    full = [sys.executable, "-m", "llmserve.cli", *arguments, "--run-dir", str(cluster.run_dir)]
    done = subprocess.run(full, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def run_batch(cluster: Cluster) -> None:
    """One line is right, and two are wrong in different ways."""
    url = "/v1/chat/completions"
    bodies: list[Any] = [{**CHAT, "max_tokens": 2}, {**CHAT, "temperature": PROMPT}, PROMPT]
    lines = [
        {"custom_id": f"{USER}-{number}", "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    headers, text = {"x-api-key": RED}, "\n".join(map(json.dumps, lines))
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=60) as client:
        files = {"file": ("a.jsonl", text.encode())}
        uploaded = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        body = {"input_file_id": uploaded["id"], "endpoint": url, "completion_window": "24h"}
        batch = client.post("/v1/batches", json=body).json()
        until = time.monotonic() + 60
        while batch["status"] not in ("completed", "failed") and time.monotonic() < until:
            time.sleep(0.1)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
    counts = batch["request_counts"]
    assert (counts["completed"], counts["failed"]) == (1, 2)


@pytest.fixture(scope="module")
def answers(cluster: Cluster) -> dict[str, httpx.Response]:
    """Everything that a client may do, well and badly."""
    well = {
        "chat": ask(cluster, "/v1/chat/completions", {**CHAT, "ignore_eos": True}),
        "completion": ask(cluster, "/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 4}),
        "response": ask(cluster, "/v1/responses", {"model": MODEL, "input": PROMPT, "max_output_tokens": 4}),
        "message": ask(cluster, "/v1/messages", {"model": MODEL, "messages": MESSAGES, "max_tokens": 4}),
    }
    for answer in well.values():
        assert answer.status_code == 200, answer.text
    odd = {f"{number}: {path}": ask(cluster, path, body) for number, (path, body) in enumerate(ODD)}
    for name, answer in odd.items():
        assert answer.status_code < 500, (name, answer.text[:500])
    run_batch(cluster)
    ask(cluster, "/v1/chat/completions", CHAT, UNKNOWN)
    ask(cluster, "/admin/reload", {}, RED)
    ask(cluster, "/admin/v1/adapters", {"name": "a", "source": f"dir:/{ADAPTER}"}, ADMIN)
    httpx.post(f"{cluster.url}/v1/chat/completions", content=f'{{"{PROMPT}', headers={"x-api-key": RED})
    httpx.get(f"{cluster.url}/v1/models?key={UNKNOWN}", headers={"x-api-key": UNKNOWN})
    return well | odd


@pytest.fixture(scope="module")
def written(cluster: Cluster, receiver: OtlpReceiver, answers: dict[str, httpx.Response]) -> Written:
    receiver.trace(answers["chat"].headers["x-llmserve-trace-id"], lambda spans: len(spans) >= 8)
    found = Written()
    state = cluster.state()
    for path in cluster.run_dir.rglob("*"):
        if path.is_file() and "batches" not in path.parts:
            found.texts[str(path.relative_to(cluster.run_dir))] = path.read_bytes().decode("latin-1")
    for path in Path(state["temp_dir"]).rglob("*"):
        if path.is_file() and path.name != "secret":
            found.texts[path.name] = path.read_bytes().decode("latin-1")
    found.texts["up.log"] = (cluster.run_dir.parent / "up.log").read_text()
    for role in state["roles"]:
        pid, name = role["pid"], role["name"]
        found.texts[f"arguments of {name}"] = Path(f"/proc/{pid}/cmdline").read_text()
        found.texts[f"metrics of {name}"] = httpx.get(f"http://{role['metrics']}/metrics", timeout=30).text
    found.texts["traces"] = repr(receiver.spans)
    found.texts["status"] = command(cluster, "status", "--json")
    found.texts["adapters"] = get(cluster, "/admin/v1/adapters", ADMIN).text
    for name, answer in answers.items():
        record = get(cluster, f"/v1/requests/{answer.headers['x-request-id']}/explain", RED)
        found.texts[f"record of {name}"] = record.text
    return found


def test_no_secret_of_a_client_is_written_shown_or_sent(
    written: Written, answers: dict[str, httpx.Response]
) -> None:
    assert {"logs/apiserver-0.log", "logs/prefill-0.log", "logs/router-0.log", "traces", "status"} <= set(
        written.texts
    )
    answer = text_of(answers["chat"])
    assert len(answer) > 20
    leaks = written.leaks({**CANARIES, "ANSWER": answer[:20]})
    # An adapter's source is known to who asked for it, and to admins.
    assert [
        leak for leak in leaks if not leak.startswith(("ADAPTER in record", "ADAPTER in logs/audit"))
    ] == []


def test_the_cluster_s_secret_is_in_its_file_alone(cluster: Cluster, written: Written) -> None:
    secret = (Path(cluster.state()["temp_dir"]) / "secret").read_text()
    assert written.leaks({"SECRET": secret}) == []


def test_what_was_refused_and_administered_is_in_the_audit_log(written: Written) -> None:
    def lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in written.texts[f"logs/{name}"].splitlines()]

    refused = [(line["what"], line["result"]) for line in lines("refusals-apiserver-0.jsonl")]
    assert ("POST /v1/chat/completions", "401") in refused
    assert ("POST /admin/reload", "403") in refused
    called = [(line["what"], line["tenant"]) for line in lines("audit-apiserver-0.jsonl")]
    assert ("POST /admin/v1/adapters", "ops") in called
    loads = [line for line in lines("audit-router-0.jsonl") if line["what"].endswith("/LoadAdapter")]
    assert ("apiserver", "apiserver-0", "a") in {
        (line["role"], line["caller"], line["name"]) for line in loads
    }


def test_records_of_a_tenant_are_invisible_to_others(
    cluster: Cluster, answers: dict[str, httpx.Response]
) -> None:
    for answer in (answers[name] for name in ("chat", "completion", "response", "message")):
        for name in {answer.headers["x-request-id"], answer.json()["id"]}:
            path = f"/v1/requests/{name}/explain"
            seen = get(cluster, path, BLUE)
            assert seen.status_code == 404, seen.text
            assert "red" not in seen.text.replace(name, "")
    stored = answers["response"].json()["id"]
    assert get(cluster, f"/v1/responses/{stored}", RED).status_code == 200
    assert get(cluster, f"/v1/responses/{stored}", BLUE).status_code == 404
    follow = {"model": MODEL, "input": "a", "max_output_tokens": 2, "previous_response_id": stored}
    assert ask(cluster, "/v1/responses", follow, BLUE).status_code == 404


def test_no_process_leaves_a_core_file(cluster: Cluster) -> None:
    for role in cluster.state()["roles"]:
        limits = Path(f"/proc/{role['pid']}/limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"], role["name"]
