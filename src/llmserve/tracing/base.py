"""Spans as the services see them. Nothing here knows OpenTelemetry.

A span is begun, gets attributes and events, and is ended once; it never fails, waits or raises. Its
`traceparent` (W3C) goes with the request to the process that continues it, and is the parent there.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from llmserve.tracing.words import OUTCOME

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]


class SpanKind(StrEnum):
    """SERVER: another process asked for the work. CLIENT: the work is done by another process."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


class Span(Protocol):
    """Implementations: OtelSpan, and _NoSpan while tracing is off. traceparent, trace_id (32 hex digits):
    empty when tracing is off. recording: whether the attributes and events are kept."""

    traceparent: str
    trace_id: str
    recording: bool

    def set_attributes(self, attributes: Attributes) -> None: ...
    def event(self, name: str, attributes: Attributes) -> None: ...
    def end(
        self,
        error: BaseException | str = "",
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> None:
        """Ends the span; later calls do nothing. error: why the work failed; empty: it did not. at_unix: the
        time of the end in seconds; None: now."""


class Tracer(Protocol):
    """Implementations: OtelTracer, and _NoTracer while tracing is off. Any thread of a process may call
    it."""

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: str,
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> Span:
        """Begins a span. parent: a traceparent; an empty or wrong one begins a new trace."""

    async def aclose(self) -> None:
        """Sends the spans that have ended, for a bounded time. Idempotent."""


class _NoSpan:
    traceparent = ""
    trace_id = ""
    recording = False

    def set_attributes(self, attributes: Attributes) -> None: ...
    def event(self, name: str, attributes: Attributes) -> None: ...
    def end(
        self,
        error: BaseException | str = "",
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> None: ...


class _NoTracer:
    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: str,
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> Span:
        return NO_SPAN

    async def aclose(self) -> None: ...


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()


@contextlib.contextmanager
def ending(span: Span) -> Iterator[Span]:
    """Ends the span when the block ends: as failed with an error, as cancelled when its task was
    cancelled."""
    try:
        yield span
    except (asyncio.CancelledError, GeneratorExit):
        span.end(attributes={OUTCOME: "cancelled"})
        raise
    except BaseException as error:
        span.end(error)
        raise
    finally:
        span.end()


def trace_id_of(traceparent: str) -> str:
    """The trace id of a traceparent; empty when there is none."""
    return traceparent[3:35]
