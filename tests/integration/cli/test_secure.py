"""examples/secure.yaml, with two apiservers: keys of the command line, their limits and their end."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from bench.cluster import Cluster, running
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.stored_key import make_key

EXAMPLE = Path(__file__).parents[3] / "examples" / "secure.yaml"
MODEL = "SmolLM2-135M-Instruct"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(yaml.safe_load(EXAMPLE.read_text())) as started:
        yield started


def keys(cluster: Cluster, *arguments: str) -> str:
    manifest = cluster.run_dir.parent / "llmserve.yaml"
    action, *others = arguments
    command = [sys.executable, "-m", "llmserve.cli", "keys", action, "-f", str(manifest), *others]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def made(cluster: Cluster, **rights: object) -> str:
    """As `keys create` does it, without the start of a process."""
    key = make_key("red", ("inference",), time.time(), **rights)
    asyncio.run(FileKeys(cluster.run_dir.parent / "keys.json").add(key.stored))
    return key.text


def asked(url: str, key: str) -> httpx.Response:
    """A connection of its own, so that any of the apiservers gets it."""
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}
    return httpx.post(f"{url}/v1/completions", json=body, headers={"x-api-key": key}, timeout=60)


def becomes(cluster: Cluster, key: str, status: int) -> None:
    """Of both apiservers: each has a port of its own, too."""
    until = time.monotonic() + 30
    for name in ("apiserver-0", "apiserver-1"):
        url = f"http://{cluster.role(name)['http']}"
        while httpx.get(f"{url}/v1/models", headers={"x-api-key": key}).status_code != status:
            assert time.monotonic() < until, f"{name} does not answer with {status}"


def test_nobody_is_let_in_without_a_key(cluster: Cluster) -> None:
    for path in ("/v1/models", "/metrics", "/docs", "/admin/v1/adapters"):
        assert httpx.get(f"{cluster.url}{path}").status_code == 401, path
    assert httpx.get(f"{cluster.url}/health").status_code == 200


def test_a_key_comes_and_goes_while_the_cluster_runs(cluster: Cluster) -> None:
    key = keys(cluster, "create", "--tenant", "red", "--scope", "inference")
    becomes(cluster, key, 200)
    assert asked(cluster.url, key).status_code == 200
    assert httpx.get(f"{cluster.url}/metrics", headers={"x-api-key": key}).status_code == 403
    keys(cluster, "revoke", key.split("-")[1])
    becomes(cluster, key, 401)


def test_the_limits_of_a_key_are_those_of_the_cluster(cluster: Cluster) -> None:
    """One in 20 seconds, and the one that may begin ahead, however many apiservers are asked."""
    key = made(cluster, requests_per_second=0.05)
    becomes(cluster, key, 200)
    urls = [f"http://{cluster.role(name)['http']}" for name in ("apiserver-0", "apiserver-1")]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda url: asked(url, key), urls * 4))
    assert sorted(answer.status_code for answer in answers) == [200, *[429] * 7]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.json()["error"]["message"] == "the key has used up its 0.05 requests per second"
    other = made(cluster)
    becomes(cluster, other, 200)
    assert asked(cluster.url, other).status_code == 200
