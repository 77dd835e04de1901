"""The edge of HTTP, around vLLM's app: who asks, how much is sent, and with which status it fails.

    authenticate -> read the body within its limit -> check it -> RequestScope -> vLLM's app -> early errors

vLLM answers a streamed request with 200 before it asks the engine for anything, so an overload
could only be told inside the stream. Here the start of an event stream is held back until its first
piece; when the request has failed by then, the client gets the error's own status, Retry-After
and a JSON body, as for a request that is not streamed. What the app raises is answered too: as the response
if none was begun, else as the last event of the stream. Whatever fails, and wherever: the body that goes
out has the form of the route (`errors.py`).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.apiserver.explain.records import RequestRecords
from llmserve.apiserver.http.auth import ApiKeys
from llmserve.apiserver.http.body import check_body, read_body
from llmserve.apiserver.http.errors import (
    ApiError,
    ErrorForm,
    api_error_in,
    api_error_of,
    as_serving_error,
    body_of,
    form_of,
    report,
    retry_after_seconds,
)
from llmserve.apiserver.http.headers import (
    ANTHROPIC_REQUEST_ID,
    REQUEST_ID,
    handover_headers,
    request_id_of,
    without_unusable,
)
from llmserve.apiserver.http.scope import RequestScope, enter_scope
from llmserve.apiserver.http.spans import TRACE_ID, HttpSpans
from llmserve.apiserver.http.spans import end as end_span
from llmserve.core.errors import LLMServeError, NotAuthenticated
from llmserve.core.logs import RequestNames, name_request

_OPEN_PATHS = frozenset({"/health", "/live", "/load", "/metrics", "/ping"})
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
# A browser sends it for the page that asks, which is not who sits at this machine.
_ORIGIN = b"origin"
_FIRST_ERROR = 400
_OF_THE_BODY = (b"content-type", b"content-length")
Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Paths:
    """root: the path under which a proxy serves all others, or empty. public: those that need no key."""

    root: str = ""
    public: frozenset[str] = _OPEN_PATHS

    @classmethod
    def of(cls, root: str | None, also_public: frozenset[str]) -> "Paths":
        return cls(root or "", _OPEN_PATHS | also_public)

    def route(self, path: str) -> str:
        """The path without the root, which a proxy may have left on it or not."""
        inside = path.removeprefix(self.root)
        return inside if inside.startswith("/") else path


class Gate:
    """An ASGI application. max_body_bytes: more is refused with 413. What is refused here is not traced: a
    stranger cannot fill the traces."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        max_body_bytes: int,
        records: RequestRecords,
        spans: HttpSpans,
        paths: Paths = Paths(),
    ) -> None:
        self.keys = keys  # others from the next request on, when they are replaced
        self._app, self._max_body_bytes, self._records, self._spans = app, max_body_bytes, records, spans
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008})
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = _as_routed(scope, self._paths)
        request_scope = RequestScope(
            request_id=request_id_of(scope["headers"]), form=form_of(scope["path"], scope["headers"])
        )
        try:
            if scope["path"] not in self._paths.public:
                caller = self.keys.caller_of(scope["headers"], is_local=_is_local(scope))
                request_scope.tenant, request_scope.admin = caller.tenant, caller.admin
            first = await read_body(scope["headers"], receive, self._max_body_bytes)
            check_body(scope["headers"], first.get("body", b""))
        except LLMServeError as error:
            await _send_error(api_error_of(error), _headers_of(error), request_scope, send)
            return
        if scope["method"] == "POST" and scope["path"] not in self._paths.public:
            self._remember(scope, request_scope)
        enter_scope(request_scope)
        name_request(RequestNames(request_scope.request_id, request_scope.span.trace_id))
        response = _HeldResponse(request_scope, send)
        try:
            await self._app(scope, _replay(first, receive), response.send)
        except Exception as error:
            await response.fail(error)
        finally:
            request_scope.explain.part_ended()

    def _remember(self, scope: Scope, request: RequestScope) -> None:
        """In a record, and as a span that ends with it."""
        explain = request.explain = self._records.open(request.request_id, request.tenant, scope["path"])
        span = request.span = self._spans.begin(
            scope["path"], scope["headers"], request.request_id, request.tenant
        )
        explain.record.trace_id = span.trace_id
        explain.when_closed(lambda: end_span(span, explain.record))


def _as_routed(scope: Scope, paths: Paths) -> Message:
    """HEAD is answered as GET (the server leaves the body out). A slash at a path's end means nothing, and an
    x-request-id that is not plain as little."""
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path = paths.route(scope["path"]).rstrip("/") or "/"
    return {**scope, "method": method, "path": path, "headers": without_unusable(scope["headers"])}


def _is_local(scope: Scope) -> bool:
    """The client is on this machine, and neither a proxy nor a web page in a browser."""
    client = scope.get("client")
    if client is None or any(name in _FORWARDED or name == _ORIGIN for name, _ in scope["headers"]):
        return False
    try:
        return ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


class _HeldResponse:
    """Holds the start of a response back until its first body message, and an error's until its last."""

    def __init__(self, scope: RequestScope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._start: Message | None = None
        self._error_body: list[bytes] = []
        self._replaced = False
        self._streams = False
        self._begun = self._ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif self._start is None:
            if not self._replaced:
                await self._pass_on(message)
        elif self._scope.early_error is not None and _may_be_replaced(self._start):
            self._start, self._replaced = None, True
            error = self._scope.early_error
            await _send_error(api_error_of(error), _headers_of(error), self._scope, self._send)
        elif self._start["status"] >= _FIRST_ERROR:
            await self._hold_error(self._start, message)
        else:
            await self._begin(self._start)
            await self._pass_on(message)

    async def fail(self, error: Exception) -> None:
        """Answers what the app raised, if it has not answered that itself. Errors: the same, when half of a
        response that is no stream was sent."""
        origin = _origin(error)
        answered = as_serving_error(origin, before_engine=not self._scope.reached_engine)
        problem = api_error_of(answered)
        report(problem, origin)
        if self._replaced or self._ended:
            return
        if not self._begun:
            self._start, self._replaced = None, True
            await _send_error(problem, _headers_of(answered), self._scope, self._send)
        elif self._streams:
            body = body_of(problem, self._scope.form, self._scope.request_id)
            event = b"data: " + json.dumps(body).encode() + b"\n\n"
            await self._pass_on({"type": "http.response.body", "body": event})
        else:
            raise error

    async def _pass_on(self, message: Message) -> None:
        self._ended = _is_last(message)
        await self._send(self._with_last_words(message))

    async def _begin(self, start: Message) -> None:
        self._start, self._begun = None, True
        self._streams = _is_stream(start)
        own = (*_names(self._scope), *handover_headers(self._scope.handovers))
        start["headers"] = [*start["headers"], *own]
        self._scope.explain.record.status = start["status"]
        await self._send(start)

    async def _hold_error(self, start: Message, message: Message) -> None:
        """Sends the error in the route's form once all of it is there; what says something else, as it is."""
        self._error_body.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = b"".join(self._error_body)
        problem = api_error_in(start["status"], body)
        if problem is None:
            await self._begin(start)
            await self._pass_on({"type": "http.response.body", "body": body})
        else:
            self._start, self._replaced = None, True
            kept = [header for header in start["headers"] if header[0] not in _OF_THE_BODY]
            await _send_error(problem, kept, self._scope, self._send)

    def _with_last_words(self, message: Message) -> Message:
        """A stream's headers are gone before its KV has moved: it ends with a comment instead, which clients
        of event streams skip."""
        if not _is_last(message) or not self._streams or not self._scope.handovers:
            return message
        comments = (b": " + name + b": " + value for name, value in handover_headers(self._scope.handovers))
        return {**message, "body": message.get("body", b"") + b"\n".join(comments) + b"\n\n"}


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _origin(error: Exception) -> Exception:
    """Starlette wraps what is raised after the start of a response."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def _may_be_replaced(start: Message) -> bool:
    """An answer that is no error in spite of the early error has found its own way around it."""
    return bool(start["status"] >= _FIRST_ERROR) or _is_stream(start)


def _is_stream(start: Message) -> bool:
    content_type = next((value for name, value in start["headers"] if name == b"content-type"), b"")
    return bool(content_type.startswith(b"text/event-stream"))


def _names(scope: RequestScope) -> Iterable[Header]:
    """By which a client can ask for what became of its request."""
    yield REQUEST_ID, scope.request_id.encode()
    if scope.form is ErrorForm.ANTHROPIC:
        yield ANTHROPIC_REQUEST_ID, scope.request_id.encode()
    if scope.span.trace_id:
        yield TRACE_ID, scope.span.trace_id.encode()


def _headers_of(error: Exception) -> Iterable[Header]:
    """What a client should know of an error besides its body."""
    if (seconds := retry_after_seconds(error)) is not None:
        yield b"retry-after", str(max(1, round(seconds))).encode()
    if isinstance(error, NotAuthenticated):
        yield b"www-authenticate", b"Bearer"


async def _send_error(problem: ApiError, headers: Iterable[Header], scope: RequestScope, send: Send) -> None:
    body = json.dumps(body_of(problem, scope.form, scope.request_id)).encode()
    content = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
    scope.explain.record.status = problem.status
    all_headers = [*headers, *content, *_names(scope)]
    await send({"type": "http.response.start", "status": problem.status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
