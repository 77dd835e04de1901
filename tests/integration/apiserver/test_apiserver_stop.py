"""An apiserver that is told to stop while it answers: what its clients see."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from .conftest import FakeCluster

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the quick"}], "max_tokens": 30}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "the quick", "max_tokens": 30},
    "/v1/messages": CHAT,
    "/v1/responses": {"model": "tiny", "input": "the quick", "max_output_tokens": 30},
}
each_api = pytest.mark.parametrize("path", list(BODIES))


async def running(cluster: FakeCluster) -> None:
    """A request waits in decode."""
    await cluster.decode.until(lambda: bool(cluster.decode.running))


@asynccontextmanager
async def stopping(cluster: FakeCluster, drain_seconds: float) -> AsyncIterator[None]:
    stop = asyncio.create_task(cluster.apiserver.aclose(drain_seconds))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await stop


async def to_its_end(response: httpx.Response, until: asyncio.Event) -> str:
    """Errors: httpx.RemoteProtocolError for a body that is torn off."""
    text = ""
    async for piece in response.aiter_text():
        text += piece
        until.set()
    return text


def clean(caplog: pytest.LogCaptureFixture) -> bool:
    """The web server had nothing to complain of."""
    return not [record for record in caplog.records if record.name.startswith("uvicorn")]


@each_api
async def test_a_stream_ends_with_an_error_event_and_a_whole_body(
    cluster: FakeCluster, http: httpx.AsyncClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cluster.decode.pause_at = 8
    began = asyncio.Event()
    async with http.stream("POST", path, json=BODIES[path] | {"stream": True}) as response:
        reading = asyncio.create_task(to_its_end(response, began))
        await began.wait()
        await running(cluster)
        await cluster.apiserver.aclose(drain_seconds=0.05)
        text = await reading
    assert response.status_code == 200
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    told = json.dumps(events[-1])
    assert "stopping" in told, events[-2:]
    assert "error" in told
    assert clean(caplog), caplog.text


@each_api
async def test_a_plain_request_gets_503(
    cluster: FakeCluster, http: httpx.AsyncClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cluster.decode.pause_at = 8
    asking = asyncio.create_task(http.post(path, json=BODIES[path]))
    await running(cluster)
    await cluster.apiserver.aclose(drain_seconds=0.05)
    response = await asking
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["connection"] == "close"
    assert "stopping" in response.json()["error"]["message"]
    assert clean(caplog), caplog.text


async def test_a_request_that_ends_in_time_is_whole(cluster: FakeCluster, http: httpx.AsyncClient) -> None:
    cluster.decode.pause_at = 8
    asking = asyncio.create_task(http.post("/v1/completions", json=BODIES["/v1/completions"]))
    await running(cluster)
    async with stopping(cluster, drain_seconds=5):
        cluster.decode.go.set()
        response = await asking
    assert (response.status_code, response.headers["connection"]) == (200, "close")


async def test_a_kept_connection_takes_nothing_new(cluster: FakeCluster, http: httpx.AsyncClient) -> None:
    host, _, port = cluster.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(request % b"/v1/models")
    assert b"200" in await reader.readuntil(b"\r\n")
    length = int((await reader.readuntil(b"\r\n\r\n")).lower().partition(b"content-length: ")[2].split()[0])
    await reader.readexactly(length)
    cluster.decode.pause_at = 8
    asking = asyncio.create_task(http.post("/v1/completions", json=BODIES["/v1/completions"]))
    await running(cluster)
    async with stopping(cluster, drain_seconds=5):
        writer.write(request % b"/v1/models")
        answer = (await reader.read()).lower()
        cluster.decode.go.set()
        await asking
    writer.close()
    assert answer.startswith(b"http/1.1 503")
    assert b"connection: close" in answer
    assert b"retry-after:" in answer


async def test_who_still_sends_a_request_is_told(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    host, _, port = cluster.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head + b"{")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await cluster.apiserver.aclose(drain_seconds=0)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 503"), answer


async def test_an_idle_apiserver_stops_at_once(cluster: FakeCluster, http: httpx.AsyncClient) -> None:
    await http.get("/v1/models")
    async with asyncio.timeout(10):
        await cluster.apiserver.aclose()


async def test_a_request_that_becomes_tokens_at_the_stop_is_served(
    cluster: FakeCluster, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.apiserver.models.first.client
    process, processing, go = client._process, asyncio.Event(), asyncio.Event()

    async def slowly(*given: Any) -> Any:
        processing.set()
        await go.wait()
        return await process(*given)

    monkeypatch.setattr(client, "_process", slowly)
    asking = asyncio.create_task(http.post("/v1/completions", json=BODIES["/v1/completions"]))
    await processing.wait()
    async with stopping(cluster, drain_seconds=5):
        await asyncio.sleep(1.2)  # longer than the web server waits in the end
        go.set()
        response = await asking
    assert (response.status_code, response.headers["connection"]) == (200, "close")


async def test_a_request_that_is_no_tokens_in_time_is_told_so(
    cluster: FakeCluster, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    processing = asyncio.Event()

    async def never(*_: Any) -> None:
        processing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(cluster.apiserver.models.first.client, "_process", never)
    asking = asyncio.create_task(http.post("/v1/completions", json=BODIES["/v1/completions"]))
    await processing.wait()
    await cluster.apiserver.aclose(drain_seconds=0.05)
    response = await asking
    assert response.status_code == 503, response.text
    assert "stopping" in response.text


async def test_a_defect_of_what_follows_the_models_ends_the_apiserver(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def defect() -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(cluster.apiserver._following, "_follow", defect)
    cluster.apiserver._router.served_changed.set()
    async with asyncio.timeout(5.0):
        with pytest.raises(ExceptionGroup, match="unhandled errors") as raised:
            await cluster.apiserver.wait()
    assert raised.group_contains(KeyError, match="a defect")


async def test_a_step_of_the_stop_that_fails_keeps_none_of_the_others(
    cluster: FakeCluster, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise RuntimeError("the console cannot close")

    monkeypatch.setattr(cluster.apiserver._console, "aclose", fails)
    with pytest.raises(RuntimeError, match="console"):
        await cluster.apiserver.aclose(drain_seconds=0.05)
    monkeypatch.undo()
    with pytest.raises(httpx.ConnectError):
        await http.get("/live")


class SlowBatches:
    """Batches whose bucket is away."""

    def __init__(self) -> None:
        self.may_close = asyncio.Event()

    async def aclose(self) -> None:
        await self.may_close.wait()


async def test_batches_that_close_slowly_let_no_new_requests_in(
    cluster: FakeCluster, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = SlowBatches()
    monkeypatch.setattr(cluster.apiserver, "_batches", batches)
    async with stopping(cluster, drain_seconds=0.05):
        try:
            await asyncio.sleep(0.05)
            with pytest.raises(httpx.ConnectError):
                await http.get("/live")
        finally:
            batches.may_close.set()
