"""The tracer that a manifest asks for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from llmserve.config.conflict import Conflict
from llmserve.config.schema.service import Tracing
from llmserve.core.errors import ManifestError
from llmserve.metrics.cluster import TracingMetrics
from llmserve.tracing.base import NO_TRACER, Tracer

_FLUSH_SECONDS = 2.0


def open_tracer(
    settings: Tracing,
    *,
    role: str,
    process: str,
    cluster: str,
    registry: CollectorRegistry,
    flush_seconds: float = _FLUSH_SECONDS,
) -> Tracer:
    """Makes the tracer of one process; its caller closes it. role, process, cluster: names of the process,
    such as "decode", "decode-0" and the manifest's metadata.name. flush_seconds: how long the close sends
    what is left. Errors: ManifestError."""
    if settings.endpoint is None:
        return NO_TRACER
    # Here: OpenTelemetry is not even imported while tracing is off.
    from llmserve.tracing.otel import OtelTracer, Service

    return OtelTracer(settings, Service(role, process, cluster), TracingMetrics(registry), flush_seconds)


def tracer_refusals(settings: Tracing) -> Iterator[Conflict]:
    """Yields the conflicts for which open_tracer would fail."""
    if settings.endpoint is None:
        return
    from llmserve.tracing.otel import check_environment

    try:
        check_environment(settings)
    except ManifestError as error:
        yield Conflict.of(error)
