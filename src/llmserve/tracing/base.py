"""Spans as the services see them. Nothing here knows OpenTelemetry.

A span is begun, told attributes and events, and ended once; it never fails, waits or raises. Its
`traceparent` (W3C) goes with the request to whoever goes on with it, and is the parent there.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from llmserve.tracing.words import OUTCOME

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]


class Kind(StrEnum):
    """SERVER: it was asked for by another process. CLIENT: it waits for another one."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


class Span(Protocol):
    """Implementations: OtelSpan, and the one that is none. traceparent, trace_id (32 hex digits): empty when
    tracing is off. recording: somebody will see it; else what it is told is not kept."""

    traceparent: str
    trace_id: str
    recording: bool

    def tell(self, attributes: Attributes) -> None: ...
    def event(self, name: str, attributes: Attributes) -> None: ...
    def end(
        self,
        error: BaseException | str = "",
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> None:
        """Idempotent: the first call counts. error: why it failed; empty: it did not. at_unix: when, in
        seconds; None: now."""


class Tracer(Protocol):
    """Implementations: OtelTracer, and the one that traces nothing. From any thread of a process."""

    def begin(
        self,
        name: str,
        kind: Kind,
        parent: str,
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> Span:
        """parent: a traceparent; empty or wrong: the span begins a trace."""

    async def aclose(self) -> None:
        """Sends what has ended, for a bounded time. Idempotent."""


class _NoSpan:
    traceparent = ""
    trace_id = ""
    recording = False

    def tell(self, attributes: Attributes) -> None: ...
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
        kind: Kind,
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
    """Ends it on the way out: as failed with an error, as cancelled when its task was cancelled."""
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
    """Empty when there is none."""
    return traceparent[3:35]
