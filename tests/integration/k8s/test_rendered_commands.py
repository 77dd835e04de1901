"""What `llmserve up` and the modelmanager make on Kubernetes is a working cluster: its pods run here as
processes, and are asked for chats, also with a model that is loaded while they run. The cluster has
certificates, as cert-manager would make them, and its models come and go.
"""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmserve.k8s import status
from llmserve.k8s.render import Object
from llmserve.rpc.callers import CallerRole
from tests.integration.k8s.conftest import Cli
from tests.support.certificates import make_certificates
from tests.support.kube_server import KubeServer
from tests.support.kubelet import Kubelet
from tests.support.simulated import simulated

CLUSTER, KEY = "simulated", "the-key-of-an-admin"
SECONDS = 240.0


def _manifest() -> dict[str, Any]:
    """Returns examples/sim.yaml with models that come and go; the first has one engine for both."""
    found = simulated("sim.yaml")
    spec = found["spec"]
    spec["models"] = [
        {"source": spec["models"]["primary"]["source"], "name": "first", "disaggregated": False}
    ]
    spec["security"] = {
        "mtls": {"directory": "certs"},
        "api_keys": [{"tenant": "ops", "key_env": "KEY", "admin": True}],
    }
    pods = {"image": "llmserve:test", "secret": "keys", "ready_timeout_seconds": SECONDS}
    models = {"manage_models": True, "model_cache_claim": "models"}
    spec["deployment"] = {"mode": "k8s", "replicas": {"prefill": 1, "decode": 1}, "k8s": {**pods, **models}}
    return found


@pytest.fixture
def kubelet(server: KubeServer, tmp_path: Path) -> Iterator[Kubelet]:
    secrets = {"metadata": {"name": "keys", "labels": {}}, "stringData": {"KEY": KEY}}
    server.store.objects["Secret", "keys"] = {"apiVersion": "v1", "kind": "Secret", **secrets}
    make_certificates(tmp_path / "certificates", CLUSTER)
    (tmp_path / "volume").mkdir()
    running = Kubelet(server, CLUSTER, tmp_path / "certificates", tmp_path / "volume")
    yield running
    running.close()


@pytest.mark.timeout(600)
def test_a_cluster_on_kubernetes_chats_with_models_that_come_and_go(
    cli: Cli, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_LOOK_SECONDS", 0.5)
    cli.path.write_text(yaml.safe_dump(_manifest()))
    said = cli("up", "--apply")
    assert said.code == 0, said.err
    _chat(kubelet, "first")
    for name in kubelet.pods:
        role = CallerRole.of_process(name.split("-")[-2])
        shown = f'cluster_certificate_expires_timestamp_seconds{{certificate="{role}"}} '
        assert shown in _metrics(kubelet, name), name
    before = _objects(cli.server)

    entry = {"source": _manifest()["spec"]["models"][0]["source"], "name": "second", "disaggregated": True}
    loaded = _ask(kubelet, "/admin/v1/models", entry)
    assert (loaded["name"], loaded["state"]) == ("second", "ready")
    _chat(kubelet, "second")
    assert "worker_requests_total" in _metrics(kubelet, "simulated-second-decode-0")
    _chat(kubelet, "first")

    _ask(kubelet, "/admin/v1/models/second", method="DELETE")
    assert _objects(cli.server) == before
    _chat(kubelet, "first")
    assert cli("down").code == 0
    assert {name for _, name in cli.server.store.objects} == {"keys"}
    assert kubelet.ended == []


def _objects(server: KubeServer) -> set[tuple[str, str]]:
    return set(server.store.objects)


def _chat(kubelet: Kubelet, model: str) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = _ask(kubelet, "/v1/chat/completions", {"model": model, "messages": question, "max_tokens": 8})
    assert answer["model"] == model
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0


def _ask(kubelet: Kubelet, path: str, body: Object | None = None, method: str = "POST") -> Object:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = kubelet.pods["simulated-apiserver-0"].url(8000) + path
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers, method=method)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        found: Object = json.load(answer)
    return found


def _metrics(kubelet: Kubelet, name: str) -> str:
    url = kubelet.pods[name].url(8000 if "apiserver" in name else 9400)
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())
