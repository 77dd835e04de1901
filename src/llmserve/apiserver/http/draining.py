"""Around the gate while the server stops: nothing new is begun, every answer ends its connection, and none is
torn off without a word."""

import asyncio
import json
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.apiserver.http.errors import ErrorForm, api_error_of, body_of, form_of, retry_after_seconds
from llmserve.core.errors import Unavailable

STOPPING = "the server is stopping; send the request again"

_STILL_ANSWERED = ("/live", "/metrics")
_CLOSE = (b"connection", b"close")
_BODY_SECONDS = 1.0
_BODY_BYTES = 1 << 20


class Draining:
    """An ASGI application. `begin` (once, for good) makes it refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begun = False

    def begin(self) -> None:
        self._begun = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _DrainableResponse(self, scope, send)
        if self._begun and scope["path"] not in _STILL_ANSWERED:
            await _swallow(receive)
            await answer.refuse()
            return
        try:
            await self._app(scope, receive, answer.send)
        except (asyncio.CancelledError, Exception):  # cancelled: by the web server, which waits no longer
            if not self._begun or not answer.can_end:
                raise
            await answer.cut_off()

    @property
    def begun(self) -> bool:
        return self._begun


class _DrainableResponse:
    def __init__(self, draining: Draining, scope: Scope, send: Send) -> None:
        self._draining, self._scope, self._send = draining, scope, send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._draining.begun:
                others = (header for header in message.get("headers", ()) if header[0].lower() != _CLOSE[0])
                message = {**message, "headers": [*others, _CLOSE]}
            self._start = message
        await self._send(message)

    async def refuse(self) -> None:
        error = Unavailable(STOPPING)
        body = self._body(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(round(retry_after_seconds(error) or 1)).encode()),
            _CLOSE,
        ]
        await self._send({"type": "http.response.start", "status": error.http_status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    @property
    def can_end(self) -> bool:
        """In a way that its client understands. Half of an answer of known length cannot."""
        return self._start is None or self._is_stream

    @property
    def _is_stream(self) -> bool:
        headers = self._start["headers"] if self._start is not None else ()
        return any(value.startswith(b"text/event-stream") for _, value in headers)

    async def cut_off(self) -> None:
        """Ends a stream with an event, and what has not begun with an error."""
        if not self._is_stream:
            await self.refuse()
            return
        event = b"event: error\n" if self._form() is ErrorForm.ANTHROPIC else b""
        body = event + b"data: " + self._body(Unavailable(STOPPING)) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body})

    def _body(self, error: Unavailable) -> bytes:
        return json.dumps(body_of(api_error_of(error), self._form())).encode()

    def _form(self) -> ErrorForm:
        return form_of(self._scope["path"], self._scope["headers"])


async def _swallow(receive: Receive) -> None:
    """Reads what the client still sends: it would lose the answer with a connection that is closed before."""
    size, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_BODY_SECONDS):
            while more and size < _BODY_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
