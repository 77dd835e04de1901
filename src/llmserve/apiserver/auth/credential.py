"""The key or token that a request shows."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmserve.core.errors import NotAuthenticated

_HEADERS = (b"authorization", b"x-api-key")
_LONGEST = 16 * 1024  # characters


@dataclass(frozen=True, slots=True)
class Credential:
    """digest: SHA-256 of the text. Keys are compared by it."""

    text: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.text.encode()).digest()


def without_credentials(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Returns the headers without what shows who asks, which nobody needs after that is known."""
    return [(name, value) for name, value in headers if name not in _HEADERS]


def credential_in(headers: Iterable[tuple[bytes, bytes]]) -> Credential:
    """Reads `Authorization: Bearer KEY`, or Anthropic's `x-api-key: KEY`. A request may show both, if they
    are the same. Errors: NotAuthenticated."""
    shown = {text for name, value in headers if (text := _shown_by(name, value))}
    if not shown:
        how = "send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        raise NotAuthenticated(f"an API key is needed: {how}")
    if len(shown) > 1:
        raise NotAuthenticated("the request shows two different keys: send one")
    (text,) = shown
    if len(text) > _LONGEST:
        raise NotAuthenticated(f"the key or token has over {_LONGEST} characters")
    return Credential(text)


def _shown_by(name: bytes, value: bytes) -> str:
    if name == b"x-api-key":
        return value.decode("latin-1")
    if name == b"authorization":
        scheme, _, key = value.decode("latin-1").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    return ""
