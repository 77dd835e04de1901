"""The API server as a pod reaches it: over TLS, with the token of its account."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from llmserve.core.errors import Unavailable
from llmserve.k8s.api import ApiRefused, KubeApi
from llmserve.k8s.connection import connect
from tests.support.certificates import make_certificates, make_host_certificate
from tests.support.kube_server import TOKEN, KubeServer
from tests.support.tls_front import behind_tls


@pytest.fixture
async def account(server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """The folder of an account, in the environment of a pod."""
    authority = make_certificates(tmp_path / "authority")
    certificate, key = make_host_certificate(authority, tmp_path / "host")
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "ca.crt").write_bytes((tmp_path / "authority" / "router" / "ca.crt").read_bytes())
    (folder / "token").write_text(f"{TOKEN}\n")
    url = yaml.safe_load(server.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    async with behind_tls(urlsplit(url).port or 0, certificate, key) as port:
        monkeypatch.delenv("KUBECONFIG")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        yield folder


async def test_a_pod_shows_the_token_that_it_has_now(server: KubeServer, account: Path) -> None:
    server.store.add_namespace("prod")
    api = KubeApi(connect(None, account), "prod")
    one = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "y z"}}}
    await asyncio.to_thread(api.apply, one)
    found = await asyncio.to_thread(api.list, "v1", "ConfigMap", "x=y z")
    assert [each["metadata"]["name"] for each in found] == ["a"]
    (account / "token").write_text("of yesterday")
    with pytest.raises(ApiRefused, match="Unauthorized"):
        await asyncio.to_thread(api.delete, one)


async def test_a_pod_trusts_the_authority_of_its_account_alone(account: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    (account / "ca.crt").write_bytes((tmp_path / "other" / "router" / "ca.crt").read_bytes())
    api = KubeApi(connect(None, account), "prod")
    with pytest.raises(Unavailable, match="does not answer"):
        await asyncio.to_thread(api.has_namespace)


async def test_a_kubeconfig_comes_before_the_account(
    server: KubeServer, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    assert connect(None, account).host.startswith("http://")
