"""A Kubernetes API server on loopback, and `llmserve` as a user calls it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmserve.cli import main
from llmserve.k8s import status
from tests.support.kube_schemas import versions
from tests.support.kube_server import KubeServer, kube_server

MANIFEST = """\
kind: LLMServe
metadata: {{name: demo}}
models: {{primary: {{source: "hub:org/model"}}}}
deployment:
  mode: k8s
  replicas: {{decode: {decode}}}
  k8s: {{namespace: prod, image: "llmserve:1", ready_timeout_seconds: {timeout}, max_replicas: {most}}}
engine: {{device: cpu, max_model_len: {length}}}
"""


@dataclass(frozen=True)
class Said:
    """What a command wrote, and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cli:
    server: KubeServer
    path: Path
    capsys: pytest.CaptureFixture[str]

    def manifest(
        self,
        decode: int = 2,
        length: int = 512,
        timeout: float = 5.0,
        most: str = "{apiserver: 4}",
        more: str = "",
    ) -> None:
        text = MANIFEST.format(decode=decode, length=length, timeout=timeout, most=most)
        self.path.write_text(text + more)

    def __call__(self, command: str, *flags: str) -> Said:
        self.capsys.readouterr()
        code = main([command, "-f", str(self.path), *flags])
        said = self.capsys.readouterr()
        return Said(code, said.out, said.err)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with kube_server(tmp_path, versions()[-1]) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        monkeypatch.setattr(status, "_LOOK_SECONDS", 0.01)
        yield running


@pytest.fixture
def cli(server: KubeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    found = Cli(server, tmp_path / "llmserve.yaml", capsys)
    found.manifest()
    return found
