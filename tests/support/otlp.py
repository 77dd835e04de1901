"""A real OTLP receiver: gRPC, the collector's TraceService, on a free port of loopback."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from bench.ports import free_port

WAIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it arrived. process: its service.instance.id. Times: seconds, Unix."""

    name: str
    process: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    began: float
    ended: float
    failed: bool
    status: str
    events: tuple[str, ...]
    attributes: Mapping[str, Any]


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """The port stays over stop and start. metadata: of the last call. tls: the files of its certificate and
    key; None: it speaks without TLS."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self._tls = tls
        self.port = free_port()
        self.metadata: dict[str, Any] = {}
        self._spans: list[Received] = []
        self._came = threading.Condition()
        self._server: grpc.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[Received]:
        with self._came:
            return list(self._spans)

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4))
        register: Callable[[Any, Any], None] = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        register(self, self._server)
        where = f"127.0.0.1:{self.port}"
        if self._tls is None:
            assert self._server.add_insecure_port(where) == self.port
        else:
            certificate, key = (path.read_bytes() for path in self._tls)
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            assert self._server.add_secure_port(where, credentials) == self.port
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the RPC
        with self._came:
            self.metadata = dict(context.invocation_metadata())
            self._spans.extend(_received(request))
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str, is_whole: Callable[[list[Received]], bool]) -> list[Received]:
        """The spans of a trace, by their beginning, once they are whole."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._came:
            while not is_whole(found := [span for span in self._spans if span.trace_id == trace_id]):
                left = deadline - time.monotonic()
                assert left > 0, f"the trace {trace_id} is not whole: {[span.name for span in found]}"
                self._came.wait(left)
        return sorted(found, key=lambda span: span.began)


@contextmanager
def otlp_receiver(tls: tuple[Path, Path] | None = None) -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver(tls)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def tree(spans: list[Received]) -> list[str]:
    """Lines "  name (process)", each span below its parent, in the order of their beginnings."""
    known = {span.span_id for span in spans}

    def below(parent: Received | None, depth: int) -> Iterator[str]:
        for span in spans:
            is_top = span.parent_id not in known
            if is_top if parent is None else span.parent_id == parent.span_id:
                yield f"{'  ' * depth}{span.name} ({span.process})"
                yield from below(span, depth + 1)

    return list(below(None, 0))


def _received(request: Any) -> Iterator[Received]:
    for group in request.resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            yield from (_span(span, resource) for span in scope.spans)


def _span(span: Span, resource: Mapping[str, Any]) -> Received:
    return Received(
        name=span.name,
        process=resource["service.instance.id"],
        service=resource["service.name"],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began=span.start_time_unix_nano / 1e9,
        ended=span.end_time_unix_nano / 1e9,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        status=span.status.message,
        events=tuple(event.name for event in span.events),
        attributes=_values(span.attributes),
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
