"""A request of a batch, sent through the gate of this apiserver as if it had come over HTTP."""

import asyncio
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.http.body import own_request
from llmserve.apiserver.http.gate import CALLER
from llmserve.apiserver.http.headers import REQUEST_ID


@dataclass(slots=True)
class LineAnswer:
    """status: of HTTP; 0 until it is known. retry_after_seconds: None when the answer has none."""

    status: int = 0
    body: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def retry_after_seconds(self) -> float | None:
        value = self.headers.get(b"retry-after", b"")
        return float(value) if value.isdigit() else None


class GateCaller:
    """Sends requests of batches through a gate."""

    def __init__(self, gate: ASGIApp) -> None:
        self._gate = gate

    async def post(self, caller: Caller, path: str, request_id: str, body: bytes) -> LineAnswer:
        """Returns the whole answer. A cancellation ends the request as a client's disconnect does."""
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone, answer, pieces = asyncio.Event(), LineAnswer(), list[bytes]()

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], dict(message["headers"])
            else:
                pieces.append(message.get("body", b""))

        try:
            await self._gate(_scope(caller, path, request_id, body), receive, send)
        finally:
            gone.set()
        answer.body = b"".join(pieces)
        return answer


def _scope(caller: Caller, path: str, request_id: str, body: bytes) -> Message:
    headers = [
        (b"host", b"batches"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (REQUEST_ID, request_id.encode()),
    ]
    return {**own_request("POST", path, headers), CALLER: caller}
