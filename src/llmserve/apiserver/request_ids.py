"""x-request-id: how a client, its logs and ours name one HTTP request."""

import re
import uuid
from collections.abc import Iterable

REQUEST_ID = b"x-request-id"
ANTHROPIC_REQUEST_ID = b"request-id"  # the same, where Anthropic's clients look for it
_ALLOWED = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, if it is short and plain; else a new one."""
    given = next((value for name, value in headers if name == REQUEST_ID), b"")
    return given.decode() if _ALLOWED.fullmatch(given) else uuid.uuid4().hex
