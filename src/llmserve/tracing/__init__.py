"""One trace for each request, over the processes that serve it.

base: the interfaces, and their implementations while tracing is off. words: names of spans and attributes.
open: makes the tracer that a manifest asks for. otel, sender: OpenTelemetry, imported only when tracing is
on.
"""
