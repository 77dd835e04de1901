"""A traceparent in the metadata of a call."""

from llmserve.rpc.client import trace_metadata
from llmserve.rpc.server import traceparent_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_is_sent_is_read() -> None:
    assert traceparent_of((("user-agent", "grpc"), *trace_metadata(PARENT))) == PARENT


def test_what_is_not_traced_sends_nothing() -> None:
    assert trace_metadata("") == ()
    assert traceparent_of((("user-agent", "grpc"),)) == traceparent_of(None) == ""
