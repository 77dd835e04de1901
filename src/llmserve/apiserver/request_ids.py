"""x-request-id: how a client, its logs and ours name one HTTP request."""

import re
import uuid
from collections.abc import Iterable

from llmserve.core.errors import InvalidRequest

REQUEST_ID = b"x-request-id"
ANTHROPIC_REQUEST_ID = b"request-id"  # the same, where Anthropic's clients look for it
_ALLOWED = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# What vLLM makes of it: chatcmpl-ID, or cmpl-ID-0.
_ALLOWED_WITHIN = re.compile(r"[A-Za-z0-9._:-]{1,160}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, if it is short and plain; else a new one."""
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
