"""What a client sees when the server stops, wherever its request is by then."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.explain.records import RequestRecords
from llmserve.apiserver.http.body import BodyLimits
from llmserve.apiserver.http.gate import Gate
from llmserve.apiserver.http.spans import HttpSpans
from llmserve.tracing.base import NO_TRACER

Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Any, Send], Awaitable[None]]


def start(content_type: bytes) -> Message:
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", content_type), (b"Connection", b"keep-alive")],
    }


def piece(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Client:
    def __init__(self, app: App, path: str = "/v1/completions", body_seconds: float = 5.0) -> None:
        limits = BodyLimits(1000, body_seconds)
        self.gate = Gate(app, Authenticator(), limits, RequestRecords(0), HttpSpans(NO_TRACER))
        self.got: list[Message] = []
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [],
            "client": None,
        }

    async def ask(self) -> None:
        await self.gate(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def _send(self, message: Message) -> None:
        self.got.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.got[0]["headers"])

    async def cancelled(self) -> None:
        """The web server cancels what still runs after its drain."""
        asking = asyncio.create_task(self.ask())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.gate.draining.begun = True
        asking.cancel()
        await asking


def answers(*messages: Message, hangs: bool = False) -> App:
    async def app(scope: Message, receive: Any, send: Send) -> None:
        for message in messages:
            await send(dict(message))
        if hangs:
            await asyncio.Event().wait()

    return app


async def test_nothing_new_begins() -> None:
    client = Client(answers(start(b"text/plain"), piece(b"never", more=False)))
    client.gate.draining.begun = True
    await client.ask()
    assert client.got[0]["status"] == 503
    assert (client.headers[b"connection"], client.headers[b"retry-after"]) == (b"close", b"1")
    assert "stopping" in json.loads(client.got[1]["body"])["error"]["message"]


@pytest.mark.parametrize("path", ["/live", "/metrics"])
async def test_the_supervisor_is_still_answered(path: str) -> None:
    client = Client(answers(start(b"text/plain"), piece(b"ok", more=False)), path)
    client.gate.draining.begun = True
    await client.ask()
    assert (client.got[0]["status"], client.got[1]["body"]) == (200, b"ok")


async def test_an_answer_that_begins_meanwhile_ends_its_connection() -> None:
    async def app(scope: Message, receive: Any, send: Send) -> None:
        client.gate.draining.begun = True
        await answers(start(b"text/plain"), piece(b"ok", more=False))(scope, receive, send)

    client = Client(app)
    await client.ask()
    connection = [value for name, value in client.got[0]["headers"] if name.lower() == b"connection"]
    assert (connection, client.got[1]["body"]) == ([b"close"], b"ok")


@pytest.mark.parametrize(
    ("path", "prefix"), [("/v1/completions", b"data: "), ("/v1/messages", b"event: error\n")]
)
async def test_a_stream_ends_with_an_event(path: str, prefix: bytes) -> None:
    client = Client(answers(start(b"text/event-stream"), piece(b"data: 1\n\n", more=True), hangs=True), path)
    await client.cancelled()
    last = client.got[-1]
    assert last["body"].startswith(prefix)
    assert b"stopping" in last["body"]
    assert not last.get("more_body", False)


async def test_what_has_not_begun_is_refused() -> None:
    client = Client(answers(hangs=True))
    await client.cancelled()
    assert [client.got[0]["status"], client.headers[b"connection"]] == [503, b"close"]


async def test_half_of_a_plain_answer_is_torn_off() -> None:
    client = Client(answers(start(b"text/plain"), piece(b"half", more=True), hangs=True))
    with pytest.raises(asyncio.CancelledError):
        await client.cancelled()
    assert len(client.got) == 2


async def test_a_cancelled_request_is_not_answered_while_the_server_goes_on() -> None:
    client = Client(answers(hangs=True))
    asking = asyncio.create_task(client.ask())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.got == []


async def test_a_body_has_a_deadline() -> None:
    client = Client(answers(), body_seconds=0.01)

    async def never() -> Message:
        return await asyncio.Future()

    client._receive = never  # type: ignore[method-assign]
    await client.ask()
    assert client.got[0]["status"] == 408
    assert b"0.01 s (security.limits.body_seconds)" in client.got[1]["body"]
