"""Clients of HTTP/1.0, which know no chunks: the end of the connection is the end of the answer."""

import asyncio
import json
import subprocess
from typing import Any

import pytest

from .conftest import FakeCluster

STREAM = {"model": "tiny", "prompt": "the quick", "max_tokens": 10, "stream": True}


async def ask(
    cluster: FakeCluster, version: str, method: str, path: str, body: Any = None
) -> tuple[str, str]:
    """Head (in small letters) and body, up to the end of the connection."""
    host, _, port = cluster.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sent = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
    if sent:
        head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
    writer.write(f"{head}\r\n".encode() + sent)
    async with asyncio.timeout(30):
        answer = (await reader.read()).decode()
    writer.close()
    found, _, rest = answer.partition("\r\n\r\n")
    return found.lower(), rest


async def test_a_stream_has_no_chunks_and_ends_with_its_connection(cluster: FakeCluster) -> None:
    head, body = await ask(cluster, "1.0", "POST", "/v1/completions", STREAM)
    assert " 200 " in head.splitlines()[0]
    assert "transfer-encoding" not in head
    assert "content-length" not in head
    assert "connection: close" in head
    assert body.startswith("data: {")
    lines = [line for line in body.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), lines
    assert lines[-1] == "data: [DONE]"


async def test_a_new_client_still_gets_chunks(cluster: FakeCluster) -> None:
    head, body = await ask(cluster, "1.1", "POST", "/v1/completions", STREAM)
    assert "transfer-encoding: chunked" in head
    assert body.endswith("0\r\n\r\n")


async def test_what_health_checkers_ask(cluster: FakeCluster, subtests: pytest.Subtests) -> None:
    for path in ("/health", "/live", "/v1/models", "/metrics", "/nowhere"):
        for method in ("GET", "HEAD"):
            with subtests.test(path=path, method=method):
                head, body = await ask(cluster, "1.0", method, path)
                assert "transfer-encoding" not in head
                length = next(
                    int(line.split()[1]) for line in head.splitlines() if line.startswith("content-length")
                )
                assert len(body.encode()) == (length if method == "GET" else 0)


async def test_curl_with_http_1_0(cluster: FakeCluster) -> None:
    command = ("curl", "-0", "-sS", "-N", "--max-time", "5", f"{cluster.url}/v1/completions")
    data = ("-H", "Content-Type: application/json", "-d", json.dumps(STREAM))
    done = await asyncio.to_thread(
        subprocess.run, [*command, *data], capture_output=True, text=True, check=False, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "data: [DONE]" in done.stdout
