"""The edge of HTTP, around vLLM's app: who asks, how much is sent, and with which status it fails.

    authenticate -> read the body within its limit -> RequestScope -> vLLM's app -> early errors

vLLM answers a streamed request with 200 before it asks the engine for anything, so an overload
could only be told inside the stream. Here the start of an event stream is held back until its first
piece; when the request has failed by then, the client gets the error's own status, Retry-After
and a JSON body, as for a request that is not streamed.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

from llmserve.apiserver.auth import ApiKeys
from llmserve.apiserver.errors import as_serving_error, body_of, retry_after_seconds, status_of
from llmserve.apiserver.explain.records import Records
from llmserve.apiserver.handover_headers import handover_headers
from llmserve.apiserver.http_spans import TRACE_ID, HttpSpans
from llmserve.apiserver.http_spans import end as end_span
from llmserve.apiserver.request_ids import REQUEST_ID, request_id_of
from llmserve.apiserver.request_scope import RequestScope, enter_scope
from llmserve.core.errors import LLMServeError, RequestTooLarge
from llmserve.core.logs import RequestNames, name_request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN_PATHS = ("/health", "/live", "/metrics")
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class Gate:
    """An ASGI application. max_body_bytes: more is refused with 413. What is refused here is not traced: a
    stranger cannot fill the traces."""

    def __init__(
        self, app: AsgiApp, keys: ApiKeys, max_body_bytes: int, records: Records, spans: HttpSpans
    ) -> None:
        self.keys = keys  # others from the next request on, when they are replaced
        self._app, self._max_body_bytes, self._records, self._spans = app, max_body_bytes, records, spans

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008})
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        request_scope = RequestScope(request_id=request_id_of(scope["headers"]))
        try:
            if scope["path"] not in _OPEN_PATHS:
                caller = self.keys.caller_of(scope["headers"], is_local=_is_local(scope))
                request_scope.tenant, request_scope.admin = caller.tenant, caller.admin
            first = await _read_body(scope, receive, self._max_body_bytes)
        except LLMServeError as error:
            await _send_error(as_serving_error(error), scope["path"], request_scope, send)
            return
        if scope["method"] == "POST":
            self._remember(scope, request_scope)
        enter_scope(request_scope)
        name_request(RequestNames(request_scope.request_id, request_scope.span.trace_id))
        response = _HeldResponse(request_scope, scope["path"], send)
        try:
            await self._app(scope, _replay(first, receive), response.send)
        finally:
            request_scope.explain.part_ended()

    def _remember(self, scope: Message, request: RequestScope) -> None:
        """In a record, and as a span that ends with it."""
        explain = request.explain = self._records.open(request.request_id, request.tenant, scope["path"])
        span = request.span = self._spans.begin(
            scope["path"], scope["headers"], request.request_id, request.tenant
        )
        explain.record.trace_id = span.trace_id
        explain.when_closed(lambda: end_span(span, explain.record))


def _is_local(scope: Message) -> bool:
    """The client is on this machine, and no proxy says that it speaks for another."""
    client = scope.get("client")
    if client is None or any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        return ip_address(client[0]).is_loopback
    except ValueError:
        return False


async def _read_body(scope: Message, receive: Receive, limit_bytes: int) -> Message:
    """The whole body as one message. Errors: RequestTooLarge, as soon as it is known."""
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return message  # the client is gone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        pieces.append(piece)
        more = message.get("more_body", False)
    return {"type": "http.request", "body": b"".join(pieces), "more_body": False}


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {limit_bytes} bytes")


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


class _HeldResponse:
    """Holds the start of a response back until its first body message."""

    def __init__(self, scope: RequestScope, path: str, send: Send) -> None:
        self._scope, self._path, self._send = scope, path, send
        self._start: Message | None = None
        self._replaced = False
        self._streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            error = self._scope.early_error
            if error is not None and _may_be_replaced(start):
                self._replaced = True
                await _send_error(error, self._path, self._scope, self._send)
            else:
                self._streams = _is_stream(start)
                own = (*_names(self._scope), *handover_headers(self._scope.handovers))
                start["headers"] = [*start["headers"], *own]
                self._scope.explain.record.status = start["status"]
                await self._send(start)
        if not self._replaced:
            await self._send(self._with_last_words(message))

    def _with_last_words(self, message: Message) -> Message:
        """A stream's headers are gone before its KV has moved: it ends with a comment instead, which clients
        of event streams skip."""
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_last or not self._streams or not self._scope.handovers:
            return message
        comments = (b": " + name + b": " + value for name, value in handover_headers(self._scope.handovers))
        return {**message, "body": message.get("body", b"") + b"\n".join(comments) + b"\n\n"}


def _may_be_replaced(start: Message) -> bool:
    """An answer that is no error in spite of the early error has found its own way around it."""
    return start["status"] >= 400 or _is_stream(start)


def _is_stream(start: Message) -> bool:
    content_type = next((value for name, value in start["headers"] if name == b"content-type"), b"")
    return bool(content_type.startswith(b"text/event-stream"))


def _names(scope: RequestScope) -> list[tuple[bytes, bytes]]:
    """By which a client can ask for what became of its request."""
    names = [(REQUEST_ID, scope.request_id.encode())]
    return [*names, (TRACE_ID, scope.span.trace_id.encode())] if scope.span.trace_id else names


async def _send_error(error: Exception, path: str, scope: RequestScope, send: Send) -> None:
    body = json.dumps(body_of(error, path)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_names(scope),
    ]
    scope.explain.record.status = status_of(error)
    if (seconds := retry_after_seconds(error)) is not None:
        headers.append((b"retry-after", str(max(1, round(seconds))).encode()))
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})
