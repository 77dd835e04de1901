"""One trace for each request, over the processes that serve it.

base: what those who trace hold, and what it is when tracing is off. words: names of spans and attributes.
open: which of both it is. otel, sender: OpenTelemetry, imported only when tracing is on.
"""
