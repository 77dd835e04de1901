"""What the apiserver counts."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# fmt: off
_LATENCY_BUCKETS_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)
# fmt: on


class ApiserverMetrics:
    """A request here is one sequence: each of `n` choices, and each prompt of a batch, counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests_total = counter(
            "apiserver_requests_total",
            "Requests that ended, by outcome: completed, cancelled (the client went away), rejected "
            "(before the queue), evicted (after the queue, before a placement), failed",
            ("outcome",),
        )
        self.running_requests = gauge("apiserver_running_requests", "Requests from admission to their end")
        self.time_to_first_token_seconds = histogram(
            "time_to_first_token_seconds",
            "From the request's start to its first token, without lines of batches",
            buckets=_LATENCY_BUCKETS_SECONDS,
        )
        self.inter_token_latency_seconds = histogram(
            "inter_token_latency_seconds",
            "Mean time between tokens, of each request with two or more",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
        )
        self.request_seconds = histogram(
            "apiserver_request_seconds",
            "From the request's start to its end, without lines of batches",
            buckets=_LATENCY_BUCKETS_SECONDS,
        )
        self.prompt_tokens_total = counter(
            "apiserver_prompt_tokens_total", "Prompt tokens of requests that got a token"
        )
        self.cached_prompt_tokens_total = counter(
            "apiserver_cached_prompt_tokens_total", "Prompt tokens that prefill found in a cache"
        )
        self.output_tokens_total = counter("apiserver_output_tokens_total", "Tokens given to clients")
        self.first_tokens_total = counter(
            "apiserver_first_tokens_total",
            "First tokens, by origin: prefill (sent before the hand-over), decode (drawn after it), "
            "aggregated (no hand-over)",
            ("origin",),
        )
        self.handovers_total = counter(
            "apiserver_handovers_total",
            "Requests with prefill and decode apart, by how the KV was meant to go: push (prefill writes "
            "it while it computes), pull (decode reads it afterwards)",
            ("mode",),
        )
        self.worker_failures_total = counter(
            "apiserver_worker_failures_total",
            "Legs that a worker failed, by the class of the error; the request is placed again if the "
            "user cannot tell",
            ("error",),
        )
        self.retries_total = counter(
            "apiserver_retries_total",
            "Requests placed again after a worker failed them, by how they go on: fresh (nothing was sent), "
            "continued (from prompt and tokens so far), replayed (run again, tokens so far not shown)",
            ("way",),
        )
        self.retries_refused_total = counter(
            "apiserver_retries_refused_total", "Requests that failed because the retry budget was used up"
        )
        self.retry_budget = gauge("apiserver_retry_budget", "Retries that may be made now")
        self.lease_releases_total = counter(
            "apiserver_lease_releases_total",
            "Leases given back because decode did not use them, by result: released, ended (it had "
            "ended already), failed (the worker did not answer; the lease expires)",
            ("result",),
        )
        self.router_connected = gauge(
            "apiserver_router_connected", "1 while the session with the router is up"
        )
        self.router_reconnects_total = counter(
            "apiserver_router_reconnects_total", "Sessions with the router that broke"
        )
        self.batch_lines_total = counter(
            "apiserver_batch_lines_total",
            "Lines of batches with a result, by result: completed, failed (answered with an error), refused "
            "(no request, and never sent), expired",
            ("result",),
        )
        self.running_batches = gauge("apiserver_running_batches", "Batches that this apiserver runs")
        self.batch_storage_failures_total = counter(
            "apiserver_batch_storage_failures_total",
            "Writes of batches' results and states that failed and are tried again",
        )
        self.worker_links = gauge("apiserver_worker_links", "Open worker sessions")
