"""Tracing with OpenTelemetry: its SDK, with a provider of our own and none of its globals.

Sampling is parent-based: the process that begins a trace decides (the client, if it sends a traceparent, else
the apiserver by `sample_ratio`), and all later ones follow. OTEL_RESOURCE_ATTRIBUTES adds attributes to each
process; OTEL_EXPORTER_OTLP_* says how the endpoint is reached.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import SpanKind as SdkKind
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llmserve import __version__
from llmserve.config.conflict import Conflict
from llmserve.config.schema.service import Tracing
from llmserve.core.errors import LLMServeError
from llmserve.metrics.cluster import TracingMetrics
from llmserve.tracing.base import Attributes, Span, SpanKind
from llmserve.tracing.sender import SpanSender
from llmserve.tracing.words import ERROR_TYPE

_ENDPOINT = ("observability", "tracing", "endpoint")
_HEADERS_LOGGER = "opentelemetry.util.re"
_HEADERS_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")  # the first counts
_KINDS: Mapping[SpanKind, SdkKind] = {
    SpanKind.SERVER: SdkKind.SERVER,
    SpanKind.CLIENT: SdkKind.CLIENT,
    SpanKind.INTERNAL: SdkKind.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class Service:
    role: str
    process: str
    cluster: str

    def resource(self) -> Resource:
        return Resource.create(
            {
                "service.name": f"llmserve-{self.role}",
                "service.namespace": self.cluster,
                "service.instance.id": self.process,
                "service.version": __version__,
            }
        )


def check_environment(settings: Tracing) -> None:
    """Makes what a tracer needs and drops it; sends nothing. Errors: ManifestError, as a tracer's."""
    exporter, _ = _made(settings, Service("check", "check", "check"))
    exporter.shutdown()


def _made(settings: Tracing, service: Service) -> tuple[OTLPSpanExporter, TracerProvider]:
    """Errors: ManifestError."""
    assert settings.endpoint is not None, "tracing is off"
    with _environment(settings.endpoint):
        exporter = OTLPSpanExporter(endpoint=settings.endpoint)
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        return exporter, TracerProvider(sampler, service.resource(), shutdown_on_exit=False)


class OtelTracer:
    """The constructor raises ManifestError when the environment (OTEL_*) cannot be used."""

    def __init__(
        self, settings: Tracing, service: Service, metrics: TracingMetrics, flush_seconds: float
    ) -> None:
        self._flush_seconds = flush_seconds
        self._contexts = TraceContextTextMapPropagator()
        exporter, provider = _made(settings, service)
        self._tracer = provider.get_tracer("llmserve", __version__)
        self._sender = SpanSender(exporter, settings.endpoint or "", metrics)
        provider.add_span_processor(self._sender)
        self._sender.start()

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: str,
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> Span:
        context = self._contexts.extract({"traceparent": parent})
        began = None if at_unix is None else _nanoseconds(at_unix)
        return OtelSpan(self._tracer.start_span(name, context, _KINDS[kind], attributes, start_time=began))

    async def aclose(self) -> None:
        await self._sender.aclose(self._flush_seconds)


@contextmanager
def _environment(endpoint: str) -> Iterator[None]:
    """Stands around code that reads OTEL_*. Errors: ManifestError."""
    headers = _WrongHeaders()
    logger = logging.getLogger(_HEADERS_LOGGER)
    logger.addFilter(headers)
    try:
        yield
    except Exception as error:  # of files and plugins that it names: they have no common root
        raise Conflict((_ENDPOINT,), f"{endpoint} cannot be used: {error}").as_error() from error
    finally:
        logger.removeFilter(headers)
    if headers.found:
        name = next((name for name in _HEADERS_VARIABLES if os.environ.get(name)), _HEADERS_VARIABLES[-1])
        raise Conflict((_ENDPOINT,), f"{name} is not a list of name=value,...").as_error()


class _WrongHeaders(logging.Filter):
    """Silences OpenTelemetry's line about headers that it cannot parse: it shows them, and they hold
    secrets."""

    found = False

    def filter(self, record: logging.LogRecord) -> bool:
        self.found = True
        return False


class OtelSpan:
    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        self._ended = False
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"
        self.recording = span.is_recording()

    def set_attributes(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, attributes)

    def end(
        self,
        error: BaseException | str = "",
        attributes: Attributes | None = None,
        at_unix: float | None = None,
    ) -> None:
        if self._ended:
            return
        self._ended = True
        if attributes:
            self._span.set_attributes(attributes)
        if error:
            self._fail(error)
        self._span.end(None if at_unix is None else _nanoseconds(at_unix))

    def _fail(self, error: BaseException | str) -> None:
        if isinstance(error, BaseException):
            self._span.set_attribute(ERROR_TYPE, type(error).__name__)
        text = error.message if isinstance(error, LLMServeError) else str(error)
        self._span.set_status(Status(StatusCode.ERROR, text))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
