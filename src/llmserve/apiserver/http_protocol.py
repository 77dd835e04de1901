"""HTTP as uvicorn speaks it, and HTTP/1.0, which knows no chunks."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class HttpProtocol(HttpToolsProtocol):
    def end_after_answer(self) -> None:
        """Ends the connection with the answer that it sends now, if it does."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, _Unchunked(cycle, app) if _is_old(cycle) else app)


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
