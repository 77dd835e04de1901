"""The commands in the rendered YAML are a working cluster: started here, pod by pod, and asked for a chat.

Each pod gets a loopback address of its own, as it would get one of the cluster's; names of Services become
the address of their pod, as DNS would make them. Everything else is taken from the YAML: commands, arguments,
variables, the manifest out of the ConfigMap. The cluster has certificates, as cert-manager would make them.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from llmserve.cli import main
from llmserve.k8s.render import Object
from llmserve.models.resolve import default_cache_dir
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import make_secret
from tests.support.certificates import make_certificates

ROOT = Path(__file__).parents[3]
ADDRESSES = {"kvmanager": "127.7.0.1", "router": "127.7.0.2", "prefill": "127.7.0.3", "decode": "127.7.0.4"}
ADDRESSES["apiserver"] = "127.7.0.5"
START_SECONDS = 240.0
END_SECONDS = 40.0


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    folder = tmp_path_factory.mktemp("rendered")
    text = (ROOT / "examples" / "sim.yaml").read_text()
    manifest = folder / "llmserve.yaml"
    text = text.replace("  deployment:", "  deployment:\n    k8s: {ready_timeout_seconds: 60}")
    manifest.write_text(f"{text}\n  security: {{mtls: {{directory: certs}}}}\n")
    flags = ["--mode", "k8s", "--image", "llmserve:test", "--out", str(folder / "out")]
    assert main(["up", "-f", str(manifest), *flags]) == 0
    kustomization = yaml.safe_load((folder / "out" / "kustomization.yaml").read_text())
    return [yaml.safe_load((folder / "out" / name).read_text()) for name in kustomization["resources"]]


class Pod:
    """One container of a workload, as a process of this machine."""

    def __init__(self, workload: Object, manifest: Path, folder: Path) -> None:
        self.role = workload["metadata"]["labels"]["app.kubernetes.io/component"]
        self.address = ADDRESSES[self.role]
        self._spec = workload["spec"]["template"]["spec"]
        self._manifest, self._folder = manifest, folder

    def prepare(self) -> None:
        """Its init containers."""
        for container in self._spec.get("initContainers", ()):
            subprocess.run(
                self._command(container), env=self._environment(container), check=True, timeout=120
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        (container,) = self._spec["containers"]
        with (self._folder / f"{self.role}.log").open("wb") as log:
            process = subprocess.Popen(
                self._command(container), env=self._environment(container), stdout=log, stderr=log
            )
            try:
                yield
            finally:
                process.terminate()
                try:
                    assert process.wait(END_SECONDS) == 0, self.role
                finally:
                    process.kill()
                    process.wait()

    def is_ready(self) -> bool:
        """Asks as the kubelet would, which has neither the secret nor a certificate."""
        (container,) = self._spec["containers"]
        probe, ports = container["readinessProbe"]["httpGet"], container["ports"]
        (port,) = [one["containerPort"] for one in ports if one["name"] == probe["port"]]
        with urllib.request.urlopen(f"http://{self.address}:{port}{probe['path']}", timeout=5) as answer:
            return bool(answer.status == 200)

    def metrics(self) -> str:
        port = 8000 if self.role == "apiserver" else 9400
        with urllib.request.urlopen(f"http://{self.address}:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def _command(self, container: Object) -> list[str]:
        words = [*container["command"], *container["args"]]
        assert words[0] == "python"
        return [sys.executable, *(self._here(word) for word in words[1:])]

    def _environment(self, container: Object) -> dict[str, str]:
        given = {one["name"]: self._here(one["value"]) for one in container["env"] if "value" in one}
        return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)} | given

    def _here(self, text: str) -> str:
        """What Kubernetes, its DNS and the mounts would make of it."""
        places = {
            "$(POD_NAME)": f"simulated-{self.role}-0",
            "$(POD_IP)": self.address,
            "/etc/llmserve/llmserve.yaml": str(self._manifest),
            "/etc/llmserve-secret": str(self._folder),
            "/etc/llmserve-certificates": str(self._folder),
            "/var/lib/llmserve/models": str(default_cache_dir()),
            "/var/lib/llmserve": str(self._folder),
            "/tmp": str(self._folder),
            **{f"simulated-{role}:": f"{address}:" for role, address in ADDRESSES.items()},
        }
        for place, here in places.items():
            if text.startswith(place):
                return here + text.removeprefix(place)
        return text


@pytest.mark.timeout(400)
def test_the_rendered_commands_serve_a_chat(objects: list[Object], tmp_path: Path) -> None:
    (configuration,) = [one for one in objects if one["kind"] == "ConfigMap"]
    manifest = tmp_path / "llmserve.yaml"
    manifest.write_text(configuration["data"]["llmserve.yaml"])
    make_secret(tmp_path / "secret")
    make_certificates(tmp_path, "simulated")
    workloads = [one for one in objects if one["kind"] in ("Deployment", "StatefulSet")]
    pods = [Pod(one, manifest, tmp_path) for one in workloads]
    assert {pod.role for pod in pods} == ADDRESSES.keys()
    with ExitStack() as running:
        for pod in pods:
            pod.prepare()
        for pod in pods:
            running.enter_context(pod.running())
        url = f"http://{ADDRESSES['apiserver']}:8000"
        _wait_for(f"{url}/health")
        answer = _chat(url)
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] > 0
        for pod in pods:
            assert pod.is_ready(), pod.role
            role = CallerRole.of_process(pod.role)
            shown = f'cluster_certificate_expires_timestamp_seconds{{certificate="{role}"}} '
            assert shown in pod.metrics()
            if pod.role == "decode":
                assert "worker_requests_total" in pod.metrics()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
            assert time.monotonic() < deadline, said
        time.sleep(0.5)


def _chat(url: str) -> Object:
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 8,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: Object = json.load(answer)
    return found
