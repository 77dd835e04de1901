"""uvicorn's protocol of one connection, with our limits, and with answers that clients of HTTP/1.0
understand."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llmserve.apiserver.limits.connections import ConnectionCounts, HeadReader
from llmserve.config.schema.limits import SecurityLimits
from llmserve.rpc.audit import AuditEntry, record_refusal

_LINGER_SECONDS = 1.0


def refuse_connection(address: str | None) -> str:
    """Records that an address got no further connection, and returns why."""
    why = "this address has too many connections (security.limits.connections_per_address)"
    record_refusal(AuditEntry("a connection", "429", {"address": address or ""}, {"why": why}))
    return why


class HttpProtocol(HttpToolsProtocol):
    """One connection of a client, within the limits. limits: of headers and of time. counts: of all
    connections of the server."""

    def __init__(self, *, limits: SecurityLimits, counts: ConnectionCounts, **uvicorn_s: Any) -> None:
        super().__init__(**uvicorn_s)
        self._counts, self._answer_seconds = counts, limits.answer_seconds
        self._head = HeadReader(limits, self._refuse)
        self._refused = self._counted = False
        self._closing: asyncio.TimerHandle | None = None

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._counted = self._counts.take(self._address)
        if self._counted:
            self._head.wait()
        else:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, refuse_connection(self._address))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._head.wait()
        super().data_received(data)
        self._head.received(len(data))

    def on_message_begin(self) -> None:
        self._head.begin()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head.add(len(url), headers=0)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.add(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head.complete():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._stop_closing()
        self._closing = self.loop.call_later(self._answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_closing()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answers without the application, unless it answers a whole request before, or has begun to: then
        that answer is the last one. Closes a moment later: what the client still sends would otherwise end
        the connection before it has read the answer."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._head.stop()
        if self._is_answering:
            self.end_after_answer()
            return
        self.transport.write(_refusal(status, message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._closing = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    @property
    def _is_answering(self) -> bool:
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(cycle.response_started or not cycle.more_body)

    def _leave(self) -> None:
        self._head.stop()
        self._stop_closing()
        if self._counted:
            self._counts.give_back(self._address)
            self._counted = False

    def _stop_closing(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def end_after_answer(self) -> None:
        """Ends the connection with the answer that it sends now, if it does."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, _Unchunked(cycle, app) if _is_old(cycle) else app)


def _refusal(status: HTTPStatus, message: str) -> bytes:
    """Returns a whole answer, after which the connection is closed. The form is OpenAI's, since the path is
    not known. (errors.py imports vLLM, which takes seconds.)"""
    kind = "RateLimitError" if status is HTTPStatus.TOO_MANY_REQUESTS else "BadRequestError"
    detail = {"message": message, "type": kind, "param": None, "code": status.value}
    body = json.dumps({"error": detail}).encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(("retry-after: 1",) if status is HTTPStatus.TOO_MANY_REQUESTS else ()),
        "connection: close",
    )
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def _is_old(cycle: RequestResponseCycle) -> bool:
    return cycle.scope["http_version"] == "1.0"


class _Unchunked:
    """An app whose answers of unknown length end with their connection, which is never kept for HTTP/1.0.
    uvicorn would send chunks, whose sizes such a client takes for text."""

    def __init__(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._cycle, self._app = cycle, app
        self._is_open_ended = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def unchunked(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                self._is_open_ended = not names & {b"content-length", b"transfer-encoding"}
                if self._is_open_ended:
                    self._cycle.chunked_encoding = False
            elif self._is_open_ended:  # as long as this piece, until the next one
                self._cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, unchunked)
