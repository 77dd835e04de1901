"""What a client sees when the application behind the gate raises, wherever it was by then."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from llmserve.apiserver.explain.records import RequestRecords
from llmserve.apiserver.http.auth import ApiKeys
from llmserve.apiserver.http.gate import Gate
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.http.spans import HttpSpans
from llmserve.tracing.base import NO_TRACER

Send = Callable[[Message], Awaitable[None]]


def start(content_type: bytes, status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}


def piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


STREAM = [start(b"text/event-stream"), piece(b"data: 1\n\n", more=True)]


async def answered(error: Exception, *sent: Message, reached_engine: bool = False) -> list[Message]:
    async def app(scope: Message, receive: Any, send: Send) -> None:
        current_scope().reached_engine = reached_engine
        for message in sent:
            await send(dict(message))
        raise error

    got: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        got.append(message)

    gate = Gate(app, ApiKeys({}), 1000, RequestRecords(0), HttpSpans(NO_TRACER, "m"))
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [],
        "client": None,
    }
    await gate(scope, receive, send)
    return got


def error_in(message: Message) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(message["body"].removeprefix(b"data: "))["error"]
    return error


@pytest.mark.parametrize(
    ("error", "reached_engine", "status"),
    [
        (AttributeError("'int' object has no attribute 'get'"), False, 400),
        (KeyError("type"), False, 400),
        (ValueError("not so"), False, 400),
        (AttributeError("ours"), True, 500),
        (OSError("too many open files"), False, 500),
    ],
)
async def test_before_any_answer_it_is_the_answer(
    error: Exception, reached_engine: bool, status: int
) -> None:
    head, body = await answered(error, reached_engine=reached_engine)
    assert head["status"] == error_in(body)["code"] == status


async def test_within_a_stream_it_is_the_last_event() -> None:
    *sent, last = await answered(OSError("gone"), *STREAM, reached_engine=True)
    assert [message["type"] for message in sent] == [message["type"] for message in STREAM]
    assert error_in(last)["code"] == 500
    assert not last.get("more_body", False)


async def test_what_the_application_has_answered_itself_stands() -> None:
    whole = [start(b"application/json"), piece(b"{}", more=False)]
    assert len(await answered(OSError("raised again"), *whole)) == len(whole)


async def test_half_an_answer_that_is_no_stream_is_broken_off() -> None:
    with pytest.raises(OSError, match="gone"):
        await answered(OSError("gone"), start(b"application/json"), piece(b"{", more=True))
