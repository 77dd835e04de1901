"""Clients that hold connections on purpose: they are refused or closed, and others are served meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from llmserve.apiserver.http.listener.server import HttpServer
from llmserve.config.schema.limits import SecurityLimits

LIMITS = SecurityLimits(headers=20, header_kib=4, connections_per_address=10)
SHORT_SECONDS = 0.3
# For tests of slow clients. In the others, a busy machine makes everybody slow.
impatient = pytest.mark.parametrize(
    "limits",
    [LIMITS.model_copy(update={"header_seconds": SHORT_SECONDS, "answer_seconds": SHORT_SECONDS})],
    ids=["impatient"],
)
_LARGE = b"x" * (1 << 20)
Raw = Callable[[bytes], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class App:
    """Answers with what it was sent; at /large with more than a connection buffers, again and again; at /slow
    after `go`."""

    def __init__(self) -> None:
        self.ended, self.asked, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/slow":
            self.asked.set()
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/large":
            await self._large(receive, send)
        else:
            await send({"type": "http.response.body", "body": b"got %d" % len(body)})

    async def _large(self, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": _LARGE, "more_body": True})
            await asyncio.sleep(0)
        self.ended.set()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def limits() -> SecurityLimits:
    return LIMITS


@pytest.fixture
async def port(app: App, limits: SecurityLimits) -> AsyncIterator[int]:
    server = HttpServer(app, "127.0.0.1:0", limits=limits)
    yield await server.start()
    await server.aclose()


@pytest.fixture
async def raw(port: int) -> AsyncIterator[Raw]:
    writers: list[asyncio.StreamWriter] = []

    async def connect(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(data)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(30):
        return (await reader.read()).decode()


def head(*headers: str, path: str = "/") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: a", *headers, "", ""]).encode()


@impatient
async def test_slow_headers_are_given_up_while_others_are_served(raw: Raw, port: int) -> None:
    slow = [await raw(part) for part in (b"", b"GE", head()[:-2], b"\r\n\r\n")]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as others:
        for _ in range(20):
            assert (await others.post("/", content=b"abc")).text == "got 3"
    for reader, _ in slow:
        said = await answer(reader)
        assert said.startswith("HTTP/1.1 408 ")
        assert "security.limits.header_seconds" in said


async def test_too_many_connections_of_an_address_while_others_are_served(
    raw: Raw, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="llmserve.rpc.audit")
    held = [await raw(b"GET") for _ in range(LIMITS.connections_per_address)]
    said = await answer((await raw(head()))[0])
    assert said.startswith("HTTP/1.1 429 ")
    assert "retry-after: 1" in said
    assert "security.limits.connections_per_address" in said
    assert '"address": "127.0.0.1", "what": "a connection"' in caplog.text
    elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=elsewhere) as others:
        for _ in range(20):
            assert (await others.post("/", content=b"abc")).text == "got 3"
    for _, writer in held:
        writer.close()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as later:
        async with asyncio.timeout(30):
            while (await later.get("/")).status_code != 200:  # until the server has seen the ends
                pass
        assert (await later.get("/")).text == "got 0"


@pytest.mark.parametrize(
    "sent",
    [head(*(f"x-{index}: a" for index in range(20))), head("x: " + "a" * 5000), head(path="/" + "a" * 5000)],
    ids=["many", "large", "a long path"],
)
async def test_headers_beyond_the_limits(raw: Raw, sent: bytes) -> None:
    said = await answer((await raw(sent))[0])
    assert said.startswith("HTTP/1.1 431 ")
    assert "security.limits.header" in said


async def test_a_header_without_an_end(raw: Raw) -> None:
    reader, writer = await raw(b"GET / HTTP/1.1\r\nx: ")
    for _ in range(20):
        writer.write(b"a" * 1000)
        await asyncio.sleep(0)
    assert (await answer(reader)).startswith("HTTP/1.1 431 ")


async def test_what_is_no_http(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    """However much of it comes, the log has one line a second."""
    for _ in range(8):
        said = await answer((await raw(b"\x16\x03\x01 what is this\r\n\r\n"))[0])
        assert said.startswith("HTTP/1.1 400 ")
        assert '"type": "BadRequestError"' in said
    assert 1 <= len(caplog.messages) < 8, caplog.messages


@impatient
async def test_many_requests_on_one_connection_are_each_within_the_limits(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(30):
            answered = await client.post("/", content=b"a" * 100_000, headers={"x": "a" * 2000})
            assert answered.text == "got 100000"
        await asyncio.sleep(2 * SHORT_SECONDS)  # the connection is idle, and stays
        assert (await client.get("/")).status_code == 200


@impatient
async def test_a_client_that_takes_nothing_is_disconnected(app: App, raw: Raw) -> None:
    reader, _ = await raw(head(path="/large"))
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(30):
        await app.ended.wait()


async def test_an_answer_is_not_torn_by_a_wrong_request_behind_it(app: App, raw: Raw) -> None:
    reader, writer = await raw(head(path="/large"))
    async with asyncio.timeout(30):
        await reader.readexactly(1 << 16)
        writer.write(head(*(f"x-{index}: a" for index in range(30))))
        for _ in range(50):
            assert b"HTTP/1.1 431" not in await reader.read(1 << 16)


async def test_a_connection_stays_one_of_http(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    """There are no websockets: a request for one is answered as any other, and none is counted for ever."""
    upgrade = (
        "connection: upgrade, close",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: YQ==",
    )
    for _ in range(LIMITS.connections_per_address + 1):
        assert (await answer((await raw(head(*upgrade)))[0])).startswith("HTTP/1.1 200 ")
    assert len(caplog.messages) < LIMITS.connections_per_address


async def test_what_is_no_request_ends_no_answer_to_the_request_before(
    raw: Raw, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await raw(head(path="/slow"))
    await app.asked.wait()
    writer.write(b"this is no HTTP\r\n\r\n")
    await asyncio.sleep(0.1)
    app.go.set()
    said = await answer(reader)
    assert said.startswith("HTTP/1.1 200 ")
    assert "got 0" in said
    assert "400" not in said
    assert "Exception" not in caplog.text
