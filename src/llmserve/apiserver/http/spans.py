"""The span of an HTTP request, from its whole body to the end of its last sequence: the root of its trace,
or a child of the client's own span (`traceparent`)."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from llmserve.apiserver.explain.record import HttpRecord, SequenceRecord
from llmserve.tracing import words
from llmserve.tracing.base import NO_SPAN, Attributes, Span, SpanKind, Tracer

TRACE_ID = b"x-llmserve-trace-id"
_TRACEPARENT = b"traceparent"
_FIRST_ERROR_STATUS = 500  # those before are the client's errors: the span of a server does not fail by them
# The paths that ask an engine for something, and what the conventions call that.
_OPERATIONS: Mapping[str, str] = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/chat/completions/batch": "chat",
        "/v1/messages": "chat",
        "/v1/responses": "chat",
        "/v1/completions": "text_completion",
    }
)


class HttpSpans:
    """begin() when a request has been let in; `end`, below, when all of it is over."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, path: str, headers: Iterable[tuple[bytes, bytes]], request_id: str, tenant: str) -> Span:
        """Returns NO_SPAN for paths that ask no engine."""
        operation = _OPERATIONS.get(path)
        if operation is None:
            return NO_SPAN
        parent = next((value for name, value in headers if name == _TRACEPARENT), b"")
        attributes: Attributes = {
            words.HTTP_METHOD: "POST",
            words.HTTP_ROUTE: path,
            words.PATH: path,
            words.OPERATION: operation,
            words.PROVIDER: "llmserve",
            words.REQUEST_ID: request_id,
            words.TENANT: tenant,
        }
        return self._tracer.begin(f"POST {path}", SpanKind.SERVER, parent.decode("latin-1"), attributes)


def end(span: Span, record: HttpRecord) -> None:
    """Ends the span with the attributes of the request's record."""
    if not span.recording:
        return
    attributes: dict[str, str | int | list[str]] = dict(_tokens(record.sequences))
    if record.model:
        attributes[words.MODEL] = record.model
    if record.status:
        attributes[words.HTTP_STATUS] = record.status
    if len(record.ids) > 1:
        attributes[words.RESPONSE_ID] = record.ids[1]
    if record.sequences:
        attributes[words.ATTEMPTS] = max(len(one.attempts) for one in record.sequences)
        attributes[words.OUTCOME] = ",".join(dict.fromkeys(one.outcome for one in record.sequences))
    span.end(_error(record), attributes)


def _tokens(sequences: Iterable[SequenceRecord]) -> Iterable[tuple[str, int]]:
    """Yields the sums over all sequences."""
    ran = list(sequences)
    if not ran:
        return
    yield words.INPUT_TOKENS, sum(one.prompt_tokens for one in ran)
    yield words.OUTPUT_TOKENS, sum(one.output_tokens for one in ran)
    yield words.DEVICE_CACHED_TOKENS, sum(one.device_cached_tokens for one in ran)
    yield words.STORE_CACHED_TOKENS, sum(one.store_cached_tokens for one in ran)
    yield words.CACHED_TOKENS, sum(one.device_cached_tokens + one.store_cached_tokens for one in ran)


def _error(record: HttpRecord) -> str:
    """A stream can fail after its 200."""
    errors = [one.error for one in record.sequences if one.error]
    if record.status >= _FIRST_ERROR_STATUS or (errors and record.status < 400):
        return record.error or next(iter(errors), f"HTTP {record.status}")
    return ""
