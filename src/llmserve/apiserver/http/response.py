"""The response to one HTTP request, on its way from vLLM's app to the web server.

vLLM answers a streamed request with 200 before it asks the engine for anything, so an overload could only be
reported inside the stream. Here the start of an event stream is held back until its first piece. When the
request has failed by then, the client gets the error's own status, Retry-After and a JSON body, as for a
request that is not streamed. What the app raises is answered too: as the response if none was begun, else as
the last event of the stream. Every body of an error has the form of its route (errors.py).
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import Message, Send

from llmserve.apiserver.http.errors import (
    ApiError,
    ErrorForm,
    api_error_in,
    api_error_of,
    as_serving_error,
    body_of,
    headers_of,
    report,
)
from llmserve.apiserver.http.headers import ANTHROPIC_REQUEST_ID, REQUEST_ID, handover_headers
from llmserve.apiserver.http.scope import RequestScope
from llmserve.apiserver.http.spans import TRACE_ID
from llmserve.core.errors import Unavailable

STOPPING = "the server is stopping; send the request again"

_FIRST_ERROR = 400
_OF_THE_BODY = (b"content-type", b"content-length")
_CLOSE = (b"connection", b"close")
Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Draining:
    """begun: the server stops. Every answer ends its connection from then on."""

    begun: bool = False


class HeldResponse:
    """Holds the start of a response back until its first body message, and an error until its last one.
    status: what was sent; 0: nothing yet."""

    def __init__(self, scope: RequestScope, draining: Draining, send: Send) -> None:
        self._scope, self._draining, self._send = scope, draining, send
        self._start: Message | None = None
        self._error_body: list[bytes] = []
        self._streams = False
        self._begun = self._ended = False  # as the client sees it
        self.status = 0

    async def send(self, message: Message) -> None:
        if self._begun and not self._ended and message.get("more_body", False):
            await self._send(message)  # a piece of a body: most messages are
        elif message["type"] == "http.response.start":
            self._start = message
        elif self._start is None:
            if not self._ended:
                await self._send_last(message)
        elif self._scope.early_error is not None and _may_be_replaced(self._start):
            await self.refuse(self._scope.early_error)
        elif self._start["status"] >= _FIRST_ERROR and self._draining.begun and _is_cancelled():
            return  # what the app makes of the cancellation is another error: `cut_off` says the right one
        elif self._start["status"] >= _FIRST_ERROR:
            await self._hold_error(self._start, message)
        else:
            await self._begin(self._start)
            await self.send(message)

    async def refuse(self, error: Exception) -> None:
        """Answers with an error instead of what the app has begun, if anything."""
        await self._send_error(api_error_of(error), headers_of(error))

    async def fail(self, error: Exception) -> None:
        """Answers what the app raised, if it has not answered that itself. Errors: the same, when half of a
        response that is no stream was sent."""
        origin = _origin(error)
        answered = as_serving_error(origin, before_engine=not self._scope.reached_engine)
        api_error = api_error_of(answered)
        report(api_error, origin)
        if self._ended:
            return
        if not self._begun:
            await self._send_error(api_error, headers_of(answered))
        elif self._streams:
            await self._send_last(_last_event(self._body(api_error)))
        else:
            raise error

    async def cut_off(self) -> bool:
        """Ends a stream with an event, and what has not begun with an error, since the server stops. Returns
        False when that is not possible: half of a body of known length was sent, or all of it."""
        error = Unavailable(STOPPING)
        if not self._begun:
            await self.refuse(error)
        elif self._streams and not self._ended:
            event = b"event: error\n" if self._scope.form is ErrorForm.ANTHROPIC else b""
            await self._send_last(_last_event(self._body(api_error_of(error)), event))
        else:
            return False
        return True

    async def _begin(self, start: Message) -> None:
        self._start, self._begun = None, True
        self._streams = _is_stream(start)
        own = (*_names(self._scope), *handover_headers(self._scope.handovers))
        self.status = self._scope.explain.record.status = start["status"]
        await self._send({**start, "headers": self._closing([*start["headers"], *own])})

    async def _send_last(self, message: Message) -> None:
        """Sends a last message. A stream's headers are gone before its KV has moved, so it ends with them as
        a comment, which clients of event streams skip."""
        self._ended = True
        if self._streams and self._scope.handovers:
            names = handover_headers(self._scope.handovers)
            comments = b"\n".join(b": " + name + b": " + value for name, value in names)
            message = {**message, "body": message.get("body", b"") + comments + b"\n\n"}
        await self._send(message)

    async def _hold_error(self, start: Message, message: Message) -> None:
        """Sends an error in the route's form once all of it is there. A body that says something else is sent
        as it is."""
        self._error_body.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = b"".join(self._error_body)
        api_error = api_error_in(start["status"], body)
        if api_error is None:
            await self._begin(start)
            await self._send_last({"type": "http.response.body", "body": body})
        else:
            kept = [header for header in start["headers"] if header[0] not in _OF_THE_BODY]
            await self._send_error(api_error, kept)

    async def _send_error(self, api_error: ApiError, headers: Iterable[Header]) -> None:
        self._start, self._begun, self._ended = None, True, True
        body = self._body(api_error)
        content = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
        self.status = self._scope.explain.record.status = api_error.status
        all_headers = self._closing([*headers, *content, *_names(self._scope)])
        await self._send({"type": "http.response.start", "status": api_error.status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})

    def _body(self, api_error: ApiError) -> bytes:
        return json.dumps(body_of(api_error, self._scope.form, self._scope.request_id)).encode()

    def _closing(self, headers: list[Header]) -> list[Header]:
        if not self._draining.begun:
            return headers
        return [*(header for header in headers if header[0].lower() != _CLOSE[0]), _CLOSE]


def _last_event(data: bytes, event: bytes = b"") -> Message:
    return {"type": "http.response.body", "body": event + b"data: " + data + b"\n\n"}


def _origin(error: Exception) -> Exception:
    """Starlette wraps what is raised after the start of a response."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_be_replaced(start: Message) -> bool:
    """A whole answer that is no error in spite of the early error has found its own way around it. A stream
    has no length."""
    is_stream = all(name != b"content-length" for name, _ in start["headers"])
    return bool(start["status"] >= _FIRST_ERROR) or is_stream


def _is_stream(start: Message) -> bool:
    content_type = next((value for name, value in start["headers"] if name == b"content-type"), b"")
    return bool(content_type.startswith(b"text/event-stream"))


def _names(scope: RequestScope) -> Iterable[Header]:
    """Yields the ids by which a client can ask for what became of its request."""
    yield REQUEST_ID, scope.request_id.encode()
    if scope.form is ErrorForm.ANTHROPIC:
        yield ANTHROPIC_REQUEST_ID, scope.request_id.encode()
    if scope.span.trace_id:
        yield TRACE_ID, scope.span.trace_id.encode()
