"""W3C trace context in the metadata of a call.

Only calls that are made for one request carry it so. The sessions between apiserver, router and workers
are each one call for many requests: there each message that begins something carries its own traceparent.
"""

from collections.abc import Iterable
from typing import Any

TRACEPARENT = "traceparent"


def trace_metadata(traceparent: str) -> tuple[tuple[str, str], ...]:
    """For a call. Empty: not traced."""
    return ((TRACEPARENT, traceparent),) if traceparent else ()


def traceparent_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """Of a call's invocation metadata. Empty: it has none."""
    return next((str(value) for key, value in metadata or () if key == TRACEPARENT), "")
