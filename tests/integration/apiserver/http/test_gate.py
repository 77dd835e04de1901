"""What a client sees when the application behind the gate raises, wherever it was by then."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.auth.caller import ALL_SCOPES, CLIENT_SCOPES, EVERYBODY, Caller
from llmserve.apiserver.auth.manifest_keys import ManifestKeys
from llmserve.apiserver.batches.call import GateCaller, LineAnswer
from llmserve.apiserver.explain.records import RequestRecords
from llmserve.apiserver.http.body import BodyLimits, own_request
from llmserve.apiserver.http.gate import Gate, Paths
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.http.spans import HttpSpans
from llmserve.core.ids import TenantId
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

    gate = Gate(app, Authenticator(), BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
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


async def test_a_call_from_within_names_its_caller() -> None:
    """A line of a batch: its key is not needed, and everything else is as for a request over HTTP."""
    seen: list[Any] = []

    async def app(scope: Message, receive: Any, send: Send) -> None:
        seen.append(current_scope())
        await receive()
        began.set()
        await receive()  # until the client goes

    began = asyncio.Event()
    auth = Authenticator(ManifestKeys({"red-key": Caller(TenantId("red"))}))
    gate = Gate(app, auth, BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
    red = Caller(TenantId("red"), CLIENT_SCOPES, adapters=frozenset({"sql"}), background=True)
    call = GateCaller(gate).post
    task = asyncio.create_task(call(red, "/v1/completions", "line_1", b'{"a": 1}'))
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    (scope,) = seen
    assert (scope.caller, scope.request_id) == (red, "line_1")


@pytest.mark.parametrize(("body", "status"), [(b'{"a": 1}', 201), (b'{"a": NaN}', 400), (b"x" * 1001, 413)])
async def test_a_line_gets_the_whole_answer(body: bytes, status: int) -> None:
    async def app(scope: Message, receive: Any, send: Send) -> None:
        got = (await receive())["body"]
        await send(start(b"application/json", 201))
        await send(piece(got[:4], more=True))
        await send(piece(got[4:], more=False))

    auth = Authenticator(ManifestKeys({"k": Caller()}))
    gate = Gate(app, auth, BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
    answer = await GateCaller(gate).post(EVERYBODY, "/v1/completions", "line_1", body)
    assert answer.status == status
    assert answer.body == body if status == 201 else b"error" in answer.body
    assert answer.headers[b"x-request-id"] == b"line_1"


async def test_the_application_never_sees_a_key() -> None:
    seen: list[Any] = []

    async def app(scope: Message, receive: Any, send: Send) -> None:
        seen.extend(scope["headers"])
        await send(start(b"application/json"))
        await send(piece(b"{}", more=False))

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        return

    auth = Authenticator(ManifestKeys({"red-key": EVERYBODY}))
    gate = Gate(app, auth, BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
    shown = [(b"authorization", b"Bearer red-key"), (b"x-api-key", b"red-key"), (b"accept", b"*/*")]
    await gate(
        {"type": "http", "method": "GET", "path": "/v1/models", "headers": shown, "client": None},
        receive,
        send,
    )
    assert seen == [(b"accept", b"*/*")]


async def test_a_line_is_refused_once_its_key_is_gone() -> None:
    async def app(scope: Message, receive: Any, send: Send) -> None:
        await send(start(b"application/json"))
        await send(piece(b"{}", more=False))

    auth = Authenticator(ManifestKeys({"red-key": Caller(TenantId("red"), CLIENT_SCOPES)}))
    gate = Gate(app, auth, BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
    red = await auth.caller_of([(b"x-api-key", b"red-key")])
    call = GateCaller(gate).post
    assert (await call(red, "/v1/completions", "line_1", b"{}")).status == 200
    auth.manifest = ManifestKeys({"new-key": Caller(TenantId("red"))})
    refused = await call(red, "/v1/completions", "line_2", b"{}")
    assert refused.status == 401
    assert json.loads(refused.body)["error"]["message"] == "the API key is not known any more"


RED = Caller(TenantId("red"), ALL_SCOPES)


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        ({"red-key": RED, "other": EVERYBODY}, True),
        ({"new-key": RED}, False),
        ({"red-key": Caller(TenantId("red"), CLIENT_SCOPES)}, False),
        ({"red-key": Caller(TenantId("blue"), ALL_SCOPES)}, False),
    ],
)
async def test_a_long_answer_may_ask_whether_its_key_still_counts(
    now: dict[str, Caller], allowed: bool
) -> None:
    found: list[bool] = []

    async def app(scope: Message, receive: Any, send: Send) -> None:
        request = current_scope()
        assert await request.is_allowed()
        auth.manifest = ManifestKeys(now)
        found.append(await request.is_allowed())
        await send(start(b"application/json"))
        await send(piece(b"{}", more=False))

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        return

    auth = Authenticator(ManifestKeys({"red-key": RED}))
    gate = Gate(app, auth, BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
    headers = [(b"x-api-key", b"red-key")]
    asks = {"type": "http", "method": "GET", "path": "/admin/v1/events", "headers": headers, "client": None}
    await gate(asks, receive, send)
    assert found == [allowed]


def test_how_long_an_answer_says_to_wait() -> None:
    def seconds(value: bytes) -> float | None:
        return LineAnswer(429, headers={b"retry-after": value}).retry_after_seconds

    assert (seconds(b"7"), seconds(b"soon"), LineAnswer(429).retry_after_seconds) == (7.0, None, None)


async def _upload(pieces: list[bytes], declared: bytes = b"") -> tuple[int, list[bytes]]:
    """What the route of an upload got of a body, up to 10 bytes, and the status of the answer."""
    got: list[bytes] = []
    answers: list[Message] = []
    waiting = [{"type": "http.request", "body": one, "more_body": True} for one in pieces]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def app(scope: Message, receive: Any, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        await send(start(b"application/json"))
        await send(piece(b"", more=False))

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        answers.append(message)

    paths = Paths.of(None, frozenset(), {"/v1/files": 10})
    gate = Gate(app, Authenticator(), BodyLimits(3, 5.0), RequestRecords(0), HttpSpans(NO_TRACER), paths)
    headers = [(b"content-length", declared)] if declared else []
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": headers, "client": None}
    await gate(scope, receive, send)
    return answers[0]["status"], got


async def test_an_upload_is_not_read_before_its_route_and_has_a_limit_of_its_own() -> None:
    assert await _upload([b"12345", b"67890"]) == (200, [b"12345", b"67890", b""])
    assert await _upload([b"12345", b"678901"]) == (413, [b"12345"])
    assert await _upload([b"1"], declared=b"11") == (413, [])
    assert await _upload([b"1"], declared=b"10") == (200, [b"1", b""])


async def test_what_changes_the_cluster_and_what_is_refused_is_in_the_audit_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="llmserve.rpc.audit")

    async def app(scope: Message, receive: Any, send: Send) -> None:
        await send(start(b"application/json", 429 if scope["path"] == "/v1/chat" else 200))
        await send(piece(b"{}", more=False))

    auth = Authenticator(ManifestKeys({"red-key": Caller(TenantId("red"), ALL_SCOPES)}))
    gate = Gate(app, auth, BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))

    async def nothing(*_: Message) -> Any:
        return {"type": "http.request", "body": b'{"name": "sql", "tenant": "blue", "entry": "a-secret"}'}

    asked = [
        ("POST", "/admin/reload", b"red-key"),
        ("GET", "/admin/v1/adapters", b"red-key"),
        ("POST", "/v1/load_lora_adapter", b"red-key"),
        ("POST", "/v1/completions", b"red-key"),
        ("POST", "/v1/chat", b"red-key"),
        ("GET", "/v1/models", b"wrong-key"),
    ]
    for method, path, key in asked:
        scope = {**own_request(method, path, [(b"x-api-key", key)]), "client": ("10.0.0.1", 1)}
        await gate(scope | {"query_string": b"token=a-secret"}, nothing, nothing)
    lines = [(record.name.rpartition(".")[2], json.loads(record.getMessage())) for record in caplog.records]
    assert [(kind, line.get("tenant"), line["what"], line["result"]) for kind, line in lines] == [
        ("calls", "red", "POST /admin/reload", "200"),
        ("calls", "red", "POST /v1/load_lora_adapter", "200"),
        ("refusals", "red", "POST /v1/chat", "429"),
        ("refusals", None, "GET /v1/models", "401"),
    ]
    assert {line["address"] for _, line in lines} == {"10.0.0.1"}
    assert [line.get("name") for _, line in lines] == ["sql", "sql", None, None]
    assert not any(secret in caplog.text for secret in ("red-key", "wrong-key", "a-secret"))


@pytest.mark.parametrize(
    ("headers", "admin"),
    [
        ({}, True),
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "LocalHost:8000", "origin": "http://LocalHost:8000"}, True),
        ({"host": "[::1]:8000", "origin": "https://[::1]:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:3000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "127.0.0.1:8000", "x-forwarded-for": "10.0.0.9"}, False),
        # Names that somebody else's page may have, and have given the address of this machine.
        ({"host": "rebound.example:8000"}, False),
        ({"host": "rebound.example", "origin": "http://rebound.example"}, False),
        ({"host": "localhost.rebound.example"}, False),
        ({"host": "127.0.0.1.rebound.example"}, False),
    ],
)
async def test_without_keys_an_admin_is_on_this_machine_and_no_page_of_others(
    headers: dict[str, str], admin: bool
) -> None:
    asked: list[bool] = []

    async def app(scope: Message, receive: Any, send: Send) -> None:
        asked.append(current_scope().caller.admin)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    gate = Gate(app, Authenticator(), BodyLimits(1000, 5.0), RequestRecords(0), HttpSpans(NO_TRACER))
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/v1/models", "headers": sent}
    for client, expected in (("127.0.0.1", admin), ("10.0.0.9", False)):
        await gate({**scope, "client": (client, 5000)}, receive, send)
        assert asked.pop() is expected
