"""The body of an HTTP request: read within its limit, and checked for what no message of ours can carry.

JSON allows text that is not Unicode (half of a surrogate pair) and nesting without end; Python's parser
allows NaN besides. All of it comes through vLLM's validation and then fails where the request is encoded,
hashed or written down, so it is refused here, with the name of the field.
"""

import asyncio
import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive

from llmserve.core.errors import ClientTooSlow, InvalidRequest, RequestTooLarge

MAX_DEPTH = 100
FIELDS = "llmserve.fields"
_DISCARD_SECONDS = 1.0
_DISCARD_BYTES = 1 << 20
_MAX_NAME_LENGTH = 200
# A body without any of these, and with few brackets, is fine as it is: most are, and need no parsing here.
_SUSPECT = (b"\\ud", b"\\uD", b"NaN", b"Infinity")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"
# Where a value is: the place of what holds it, and its key or index there. None: the body itself.
_Place = tuple[Any, object] | None


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """size_bytes: of a body. seconds: in which it has to arrive, or each piece of one that is read in
    pieces."""

    size_bytes: int
    seconds: float


async def read_body(headers: Iterable[tuple[bytes, bytes]], receive: Receive, limits: BodyLimits) -> Message:
    """Returns the whole body as one message; the client's disconnect instead when it is gone.
    Errors: RequestTooLarge, as soon as it is known; ClientTooSlow."""
    _check_declared(headers, limits.size_bytes)
    try:
        async with asyncio.timeout(limits.seconds):
            return await _whole_body(receive, limits.size_bytes)
    except TimeoutError:
        raise _too_slow("the body did not arrive", limits.seconds) from None


def bounded(headers: Iterable[tuple[bytes, bytes]], receive: Receive, limits: BodyLimits) -> Receive:
    """Returns a receive that raises RequestTooLarge at a body beyond the limit, and ClientTooSlow at a client
    that is too slow with a piece of it. Errors: RequestTooLarge, if the headers say so."""
    _check_declared(headers, limits.size_bytes)
    left_bytes, more = limits.size_bytes, True

    async def received() -> Message:
        nonlocal left_bytes, more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout(limits.seconds):
                message = await receive()
        except TimeoutError:
            raise _too_slow("no piece of the body arrived", limits.seconds) from None
        left_bytes, more = left_bytes - len(message.get("body", b"")), message.get("more_body", False)
        if left_bytes < 0:
            raise _too_large(limits.size_bytes)
        return message

    return received


def _too_slow(what: str, seconds: float) -> ClientTooSlow:
    return ClientTooSlow(f"{what} within {seconds:g} s (security.limits.body_seconds)")


def _check_declared(headers: Iterable[tuple[bytes, bytes]], limit_bytes: int) -> None:
    declared = _header(headers, b"content-length")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)


async def _whole_body(receive: Receive, limit_bytes: int) -> Message:
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return message
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        pieces.append(piece)
        more = message.get("more_body", False)
    return {"type": "http.request", "body": b"".join(pieces), "more_body": False}


def with_fields(first: Message) -> Message:
    """Returns a body's message with what it says under the key FIELDS, so that nobody has to parse it again:
    the fields of a JSON object, or None for all else."""
    try:
        fields = json.loads(first.get("body", b""))
    except (ValueError, RecursionError):
        fields = None
    return {**first, FIELDS: fields if isinstance(fields, dict) else None}


def own_request(method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Returns the ASGI scope of a request that this process makes to itself."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": None,
        "server": None,
        "state": {},
    }


def replay(first: Message, receive: Receive) -> Receive:
    """Returns a receive that begins with a message that was taken already."""
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def discard_body(receive: Receive) -> None:
    """Reads what the client still sends, for a moment: it would lose an answer with a connection that is
    closed before."""
    size, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while more and size < _DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {limit_bytes} bytes")


def check_body(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Checks a body that says to be JSON; what is no JSON at all is left to the routes.
    Errors: InvalidRequest."""
    if b"json" not in _header(headers, b"content-type").lower():
        return
    if not _is_utf8(body) or b"\x00" in body:
        raise InvalidRequest("the body is not UTF-8, which JSON has to be")
    many = body.count(b"[") + body.count(b"{") > MAX_DEPTH
    if many or any(part in body for part in _SUSPECT):
        _check_values(body.removeprefix(_BOM))


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_values(body: bytes) -> None:
    """Errors: InvalidRequest, for the first field that is wrong."""
    try:
        value = json.loads(body)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        return  # no JSON, or a number with thousands of digits: the routes' own parser says so
    waiting: list[tuple[int, _Place, Any]] = [(0, None, [value])]
    while waiting:
        depth, place, container = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        is_object = isinstance(container, dict)
        for key, one in container.items() if is_object else enumerate(container):
            here = (place, key)
            if isinstance(one, dict | list):
                waiting.append((depth + 1, here, one))
            elif problem := _problem(one):
                raise _refused(here, problem)
            if is_object and (problem := _problem(key)):
                raise _refused(here, problem)


def _problem(value: Any) -> str:
    """Returns why a value cannot be carried; empty when it can."""
    if isinstance(value, str):
        wrong = not value.isascii() and _SURROGATE.search(value)
        return "has half of a surrogate pair, which is not text" if wrong else ""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    return ""


def _refused(place: _Place, problem: str) -> InvalidRequest:
    keys: list[str] = []
    while place is not None:
        place, key = place
        keys.insert(0, str(key).encode("ascii", "backslashreplace").decode())
    name = ".".join(keys[1:])[:_MAX_NAME_LENGTH]  # the first is that of the body in its list
    return InvalidRequest(f"{name or 'the body'} {problem}", field=name)


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep")


def _header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    return next((value for name, value in headers if name == wanted), b"")
