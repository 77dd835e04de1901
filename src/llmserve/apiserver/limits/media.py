"""URLs of images, sounds, videos and files in a request: whose host is not allowed is never asked. Pure.

The form of a URL is narrow on purpose. Parsers disagree about what is odd (`http://a\\@b/`), so that one of
them would check a host and another one would ask a different one."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llmserve.core.errors import InvalidRequest

_KEYS = frozenset({"image_url", "audio_url", "video_url", "file_url"})
_SOURCE = "source"  # Anthropic's
# What the client's own tools and templates are given is not looked at by anybody here.
_OPAQUE = frozenset(
    {"tools", "functions", "metadata", "chat_template_kwargs", "response_format", "structured_outputs"}
)
_TOOL_CALL = "tool_use"
_INLINE = re.compile("data:", re.IGNORECASE)
_PLAIN_URL = re.compile(
    r"https?://([a-z0-9.-]+)(?::[0-9]{1,5})?(?:[/?#][\x21-\x5b\x5d-\x7e]*)?", re.IGNORECASE
)


def may_have_urls(body: bytes) -> bool:
    """Returns False when no key of a body can be one of a URL, as in most bodies. Keys may be escaped."""
    return b"url" in body or b"\\u" in body


def check_media(fields: Mapping[str, Any], hosts: Collection[str]) -> None:
    """hosts: those that may be asked. Errors: InvalidRequest, without the URL: it may hold secrets."""
    for key, url in _urls(fields):
        if _INLINE.match(url):
            continue
        plain = _PLAIN_URL.fullmatch(url)
        if plain is None:
            raise InvalidRequest(f"{key} must be a plain URL of http or https, or inline data", field=key)
        if plain[1].lower() not in hosts:
            raise InvalidRequest(
                f"{key}: its host is not one of those from which media are fetched "
                "(security.allowed_media_hosts); send the data inline",
                field=key,
            )


def _urls(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each URL with the key that has it."""
    yield from _urls_at(fields)
    waiting = [value for name, value in fields.items() if name not in _OPAQUE]
    while waiting:
        held = waiting.pop()
        if isinstance(held, dict):
            yield from _urls_at(held)
            is_call = held.get("type") == _TOOL_CALL
            waiting += [value for key, value in held.items() if not (is_call and key == "input")]
        elif isinstance(held, list):
            waiting += held


def _urls_at(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in (_SOURCE, *_KEYS):
        value = part.get(key)
        url = value.get("url") if isinstance(value, dict) else value
        if isinstance(url, str) and (key != _SOURCE or isinstance(value, dict)):
            yield key, url
