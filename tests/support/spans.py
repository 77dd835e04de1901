"""A tracer that keeps its spans in memory."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from llmserve.tracing.base import Attributes, Span, SpanKind

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
ROOT = f"00-{TRACE_ID}-{'a' * 16}-01"


@dataclass
class KeptSpan:
    name: str
    kind: SpanKind
    parent: str
    traceparent: str
    attributes: dict[str, Any]
    began: float | None = None
    ended: bool = False
    ended_at: float | None = None
    error: BaseException | str = ""
    events: list[str] = field(default_factory=list)
    trace_id: str = TRACE_ID
    recording: bool = True

    def set_attributes(self, attributes: Attributes) -> None:
        self.attributes.update(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        self.events.append(name)

    def end(
        self,
        error: BaseException | str = "",
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> None:
        if not self.ended:
            self.ended, self.error, self.ended_at = True, error, at_unix
            self.attributes.update(attributes or {})


class KeptSpans:
    """A Tracer. recording: of the spans that it begins."""

    def __init__(self, *, recording: bool = True) -> None:
        self.spans: list[KeptSpan] = []
        self._recording, self._numbers = recording, itertools.count(1)

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: str,
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> Span:
        traceparent = f"00-{TRACE_ID}-{next(self._numbers):016x}-01"
        span = KeptSpan(name, kind, parent, traceparent, dict(attributes or {}), at_unix)
        span.recording = self._recording
        self.spans.append(span)
        return span

    async def aclose(self) -> None: ...

    def only(self, name: str) -> KeptSpan:
        (found,) = (span for span in self.spans if span.name == name)
        return found
