"""Section `observability.tracing`."""

from typing import Annotated

from pydantic import Field

from llmserve.config.knob import Section


class Tracing(Section):
    """Spans of requests (OpenTelemetry), from HTTP to the last token."""

    endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/\s]+$",
            description="Where spans are sent, as OTLP over gRPC: `http://HOST:PORT`; `https://` for TLS. "
            "Without it nothing is traced. Headers and certificates are read from the environment "
            "(`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_CERTIFICATE`).",
        ),
    ] = None
    sample_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of requests that are traced. A request with a W3C `traceparent` of its own is "
            "traced if that says so.",
        ),
    ] = 1.0
