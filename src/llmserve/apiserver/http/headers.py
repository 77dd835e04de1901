"""The headers of HTTP that are ours: request ids, how KV was handed over, and CORS."""

import re
import uuid
from collections.abc import Iterable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.apiserver.http.spans import TRACE_ID
from llmserve.core.errors import InvalidRequest
from llmserve.core.request import HandoverReport

REQUEST_ID = b"x-request-id"
ANTHROPIC_REQUEST_ID = b"request-id"  # the same, where Anthropic's clients look for it
_ALLOWED = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# What vLLM makes of it: chatcmpl-ID, or cmpl-ID-0.
_ALLOWED_WITHIN = re.compile(r"[A-Za-z0-9._:-]{1,160}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the client's id, if it is short and plain; else a new one."""
    given = next((value for name, value in headers if name == REQUEST_ID), b"")
    return given.decode() if _ALLOWED.fullmatch(given) else uuid.uuid4().hex


def without_unusable(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Returns the headers that vLLM may see: it makes its own ids from x-request-id as it comes."""
    return [(name, value) for name, value in headers if name != REQUEST_ID or _ALLOWED.fullmatch(value)]


def check_request_id(request_id: str) -> None:
    """request_id: as vLLM has made it, perhaps from the client's field of that name. It goes into logs and to
    every role. Errors: InvalidRequest."""
    if not _ALLOWED_WITHIN.fullmatch(request_id):
        what = "may have up to 128 letters, digits and any of . _ : -"
        raise InvalidRequest(f"request_id {what}", field="request_id")


TRANSPORT = b"x-llmserve-transport"
MODE = b"x-llmserve-handover"
FALLBACK = b"x-llmserve-fallback"
_RECOMPUTED = "recomputed"
_LONGEST = 1000


def handover_headers(reports: Sequence[HandoverReport]) -> list[tuple[bytes, bytes]]:
    """Returns the headers for all sequences of one HTTP request. x-llmserve-transport: what brought the KV,
    or "recomputed". x-llmserve-handover: whether it was pushed or pulled, if anything brought it.
    x-llmserve-fallback, if anything failed: each "transport: reason"."""
    if not reports:
        return []
    headers = [(TRANSPORT, _text(", ", [report.transport or _RECOMPUTED for report in reports]))]
    if modes := ["push" if report.pushed else "pull" for report in reports if report.transport]:
        headers.append((MODE, _text(", ", modes)))
    failures = [one for report in reports for one in (*report.fallbacks, report.reason) if one]
    if failures:
        headers.append((FALLBACK, _text("; ", failures)))
    return headers


def _text(separator: str, parts: Sequence[str]) -> bytes:
    """Returns each part once, as a header value: one line of latin-1."""
    joined = separator.join(dict.fromkeys(parts))[:_LONGEST]
    return "".join(c if c.isprintable() else " " for c in joined).encode("latin-1", "replace")


_METHODS = ("GET", "HEAD", "POST", "DELETE")
_EXPOSED = (REQUEST_ID, ANTHROPIC_REQUEST_ID, TRACE_ID, TRANSPORT, MODE, FALLBACK, b"retry-after")
_PREFLIGHT_SECONDS = 600


class Cors:
    """An ASGI application. Answers preflights itself, since browsers send no key with them, and adds its
    headers to every other answer, errors too. Pages send keys in headers, so cookies are not allowed for."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self.allow(origins)

    def allow(self, origins: Sequence[str]) -> None:
        """These origins from the next request on, and no others."""
        self._any_allowed = bool(origins)
        self._cors = CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=("*",),
            expose_headers=[name.decode() for name in _EXPOSED] if origins else (),
            # A page of the internet may use a server of this network, if its origin is allowed.
            allow_private_network=True,
            max_age=_PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request without Origin gets no CORS header while no origin is allowed."""
        is_plain = not self._any_allowed and all(name != b"origin" for name, _ in scope.get("headers", ()))
        await (self._app if is_plain else self._cors)(scope, receive, send)
