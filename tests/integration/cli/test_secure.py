"""examples/secure.yaml, with two apiservers: certificates, and keys of the command line with their limits and
their end."""

import asyncio
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from bench.cluster import Cluster, running
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.stored_key import make_key
from llmserve.config.load import load_manifest
from llmserve.doctor import Status
from llmserve.doctor.security import weak_settings
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.wires.authority import Authority
from tests.support.certificates import credentials_in, make_certificates, make_host_certificate
from tests.support.simulated import simulated

MODEL = "SmolLM2-135M-Instruct"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the comment of the example makes. One authority signs all of them, here."""
    folder = tmp_path_factory.mktemp("secure")
    authority = make_certificates(folder / "certs", "secure")
    _, key = make_host_certificate(authority, folder)
    key.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    manifest = simulated("secure.yaml")
    security = manifest["spec"]["security"]
    assert security["mtls"] == {"directory": "certs"}
    security["mtls"]["directory"] = str(folder / "certs")
    assert security["tls"] == {"certificate": "https.crt", "key": "https.key"}
    security["tls"] = {"certificate": str(folder / "host.crt"), "key": str(folder / "host.key")}
    with running(manifest) as started:
        yield started


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """It accepts the cluster's certificate only, and makes a new connection for each request, so that any of
    the apiservers gets it."""
    trusted = ssl.create_default_context(cafile=folder / "certs" / "ca" / "ca.crt")
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(verify=trusted, limits=limits, timeout=60) as client:
        yield client


def keys(cluster: Cluster, *arguments: str) -> str:
    manifest = cluster.run_dir.parent / "llmserve.yaml"
    action, *others = arguments
    command = [sys.executable, "-m", "llmserve.cli", "keys", action, "-f", str(manifest), *others]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def made(cluster: Cluster, scopes: tuple[str, ...] = ("inference",), **rights: object) -> str:
    """As `keys create` does it, without the start of a process."""
    key = make_key("red", scopes, time.time(), **rights)
    asyncio.run(FileKeys(cluster.run_dir.parent / "keys.json").add(key.stored))
    return key.text


def asked(client: httpx.Client, url: str, key: str) -> httpx.Response:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}
    return client.post(f"{url}/v1/completions", json=body, headers={"x-api-key": key})


def each_url(cluster: Cluster) -> list[str]:
    """Of both apiservers: each has an address of its own beside the one that they share."""
    return [f"https://{cluster.role(name)['direct']}" for name in ("apiserver-0", "apiserver-1")]


def becomes(cluster: Cluster, client: httpx.Client, key: str, status: int) -> None:
    until = time.monotonic() + 30
    for url in each_url(cluster):
        while client.get(f"{url}/v1/models", headers={"x-api-key": key}).status_code != status:
            assert time.monotonic() < until, f"{url} does not answer with {status}"


def test_nobody_is_let_in_without_a_key(cluster: Cluster, client: httpx.Client) -> None:
    for path in ("/v1/models", "/metrics", "/docs", "/admin/v1/adapters"):
        assert client.get(f"{cluster.url}{path}").status_code == 401, path
    assert client.get(f"{cluster.url}/health").status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(cluster.url.replace("https", "http"))


def test_the_console_reaches_every_process(cluster: Cluster, client: httpx.Client) -> None:
    key = made(cluster, ("read",))
    becomes(cluster, client, key, 200)
    answer = client.get(f"{cluster.url}/admin/v1/status", headers={"x-api-key": key})
    assert (answer.json()["healthy"], answer.json()["problems"]) == (True, [])


def test_processes_are_called_with_certificates_only(cluster: Cluster, folder: Path) -> None:
    address = cluster.role("router-0")["listen"]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
        HealthStub(channel).Check(HealthCheckRequest(), timeout=30)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE

    async def check() -> None:
        operator = credentials_in(folder / "certs", CallerRole.OPERATOR)
        async with open_channel(address, operator, CallerRole.ROUTER) as channel:
            await HealthStub(channel).Check(HealthCheckRequest(), timeout=30)

    asyncio.run(check())


def test_doctor_finds_nothing_weak(cluster: Cluster) -> None:
    path = cluster.run_dir.parent / "llmserve.yaml"
    made(cluster)
    found = list(weak_settings(load_manifest(path), path))
    assert [one for one in found if one.status is not Status.OK] == []
    assert {one.name: one.value for one in found}["own wires"] == "mutual TLS"


def test_a_key_comes_and_goes_while_the_cluster_runs(cluster: Cluster, client: httpx.Client) -> None:
    key = keys(cluster, "create", "--tenant", "red", "--scope", "inference")
    becomes(cluster, client, key, 200)
    assert asked(client, cluster.url, key).status_code == 200
    assert client.get(f"{cluster.url}/metrics", headers={"x-api-key": key}).status_code == 403
    keys(cluster, "revoke", key.split("-")[1])
    becomes(cluster, client, key, 401)


def test_the_limits_of_a_key_are_those_of_the_cluster(cluster: Cluster, client: httpx.Client) -> None:
    """One in 20 seconds, and the one that may begin ahead, however many apiservers are asked."""
    key = made(cluster, requests_per_second=0.05)
    becomes(cluster, client, key, 200)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda url: asked(client, url, key), each_url(cluster) * 4))
    assert sorted(answer.status_code for answer in answers) == [200, *[429] * 7]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.json()["error"]["message"] == "the key has used up its 0.05 requests per second"
    other = made(cluster)
    becomes(cluster, client, other, 200)
    assert asked(client, cluster.url, other).status_code == 200


def test_a_load_believes_the_cluster_s_own_certificate(cluster: Cluster, client: httpx.Client) -> None:
    key = made(cluster)
    becomes(cluster, client, key, 200)
    command = [sys.executable, "-m", "llmserve.cli", "bench", "--run-dir", str(cluster.run_dir)]
    command += ["--api-key", key, "--requests", "2", "--concurrency", "1", "--mix", "tiny=8/2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_so_does_a_load_of_the_console(cluster: Cluster, client: httpx.Client) -> None:
    admin = made(cluster, scopes=("inference", "admin"))
    becomes(cluster, client, admin, 200)
    load = {"users": 1, "requests": 2, "prompt_tokens": 8, "output_tokens": 2, "api_key": admin}
    where = f"{cluster.url}/admin/v1/bench"
    began = client.post(where, json=load, headers={"x-api-key": admin})
    assert began.status_code == 200, began.text
    run: dict[str, Any] = {"state": "starting"}
    until = time.monotonic() + 60
    while run["state"] in ("starting", "running") and time.monotonic() < until:
        time.sleep(0.2)
        answer = client.get(f"{where}/{began.json()['id']}", headers={"x-api-key": admin})
        run = answer.json() if answer.status_code == 200 else run  # its file comes with its process
    assert run["state"] == "ended", run
    assert run["report"]["served"] == 2


def test_no_request_fails_while_all_certificates_change(
    cluster: Cluster, client: httpx.Client, folder: Path
) -> None:
    key, rounds = made(cluster), 3
    becomes(cluster, client, key, 200)
    authority, over = Authority.read(folder / "certs"), Event()
    statuses: list[int] = []

    def load() -> None:
        while not over.is_set():
            statuses.append(asked(client, cluster.url, key).status_code)

    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(load) for _ in range(4)]
        try:
            for _ in range(rounds):
                for role in CallerRole:
                    authority.issue(folder / "certs", role, days=1.0)
                make_host_certificate(authority, folder)
                enough = len(statuses) + 20
                time.sleep(1.2)  # processes look at the files once a second
                while len(statuses) < enough and not any(one.done() for one in loads):
                    time.sleep(0.05)
        finally:
            over.set()
    for one in loads:
        one.result()
    assert statuses == [200] * len(statuses)
    assert len(statuses) >= 20 * rounds
