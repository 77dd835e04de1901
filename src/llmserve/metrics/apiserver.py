"""What the apiserver counts."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

# fmt: off
_LATENCY_BUCKETS_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)
# fmt: on


class TokenMetrics:
    """Tokens of all models' requests, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.prompt_tokens_total = counter(
            "apiserver_prompt_tokens_total", "Prompt tokens of requests that got a token", ("model",)
        )
        self.cached_prompt_tokens_total = counter(
            "apiserver_cached_prompt_tokens_total", "Prompt tokens that prefill found in a cache", ("model",)
        )
        self.output_tokens_total = counter(
            "apiserver_output_tokens_total", "Tokens given to clients", ("model",)
        )
        self.first_tokens_total = counter(
            "apiserver_first_tokens_total",
            "First tokens, by origin: prefill (sent before the hand-over), decode (drawn after it), "
            "aggregated (no hand-over)",
            ("model", "origin"),
        )


class AttemptMetrics:
    """Hand-overs, failures and retries of all models' requests, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.handovers_total = counter(
            "apiserver_handovers_total",
            "Requests with prefill and decode apart, by how the KV was meant to go: push (prefill writes "
            "it while it computes), pull (decode reads it afterwards)",
            ("model", "mode"),
        )
        self.worker_failures_total = counter(
            "apiserver_worker_failures_total",
            "Legs that a worker failed, by the class of the error; the request is placed again if the "
            "user cannot tell",
            ("model", "error"),
        )
        self.retries_total = counter(
            "apiserver_retries_total",
            "Requests placed again after a worker failed them, by how they go on: fresh (nothing was sent), "
            "continued (from prompt and tokens so far), replayed (run again, tokens so far not shown)",
            ("model", "way"),
        )
        self.retries_refused_total = counter(
            "apiserver_retries_refused_total",
            "Requests that failed because the retry budget was used up",
            ("model",),
        )


class RequestMetrics:
    """Requests of all models, by model. A request here is one sequence: each of `n` choices, and each prompt
    of a batch, counts. They are counted by a ModelMetrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests_total = counter(
            "apiserver_requests_total",
            "Requests that ended, by outcome: completed, cancelled (the client went away), rejected "
            "(before the queue), evicted (after the queue, before a placement), failed",
            ("model", "outcome"),
        )
        self.running_requests = Gauge(
            "apiserver_running_requests",
            "Requests from admission to their end",
            ("model",),
            registry=registry,
        )
        self.time_to_first_token_seconds = histogram(
            "time_to_first_token_seconds",
            "From the request's start to its first token, without lines of batches",
            ("model",),
            buckets=_LATENCY_BUCKETS_SECONDS,
        )
        self.inter_token_latency_seconds = histogram(
            "inter_token_latency_seconds",
            "Mean time between tokens, of each request with two or more, without lines of batches",
            ("model",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
        )
        self.request_seconds = histogram(
            "apiserver_request_seconds",
            "From the request's start to its end, without lines of batches",
            ("model",),
            buckets=_LATENCY_BUCKETS_SECONDS,
        )
        self.tokens, self.attempts = TokenMetrics(registry), AttemptMetrics(registry)

    def forget(self, model: str) -> None:
        """Removes the series of a model that has left, and of which no ModelMetrics is used any more. One
        that comes back begins at 0."""
        for metric in (*vars(self).values(), *vars(self.tokens).values(), *vars(self.attempts).values()):
            if isinstance(metric, MetricWrapperBase):
                metric.remove_by_labels({"model": model})


class BatchMetrics:
    """What the apiserver counts of `/v1/batches`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.lines_total = counter(
            "apiserver_batch_lines_total",
            "Lines of batches with a result, by result: completed, failed (answered with an error), refused "
            "(no request, and never sent), expired",
            ("result",),
        )
        self.running = Gauge(
            "apiserver_running_batches", "Batches that this apiserver runs", registry=registry
        )
        self.storage_failures_total = counter(
            "apiserver_batch_storage_failures_total",
            "Writes of batches' results and states that failed and are tried again",
        )


class ApiserverMetrics:
    """The links and retries of an apiserver. Its requests and batches are counted apart."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
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
        self.worker_links = gauge("apiserver_worker_links", "Open worker sessions")
        self.requests = RequestMetrics(registry)
        self.batches = BatchMetrics(registry)


class ModelMetrics:
    """Counts what happens to one model's requests. model: its name, and never that of an adapter or one that
    a client made up, so that there are series of served models alone. Those without another label begin at
    0, before the first request."""

    def __init__(self, all_models: RequestMetrics, model: str) -> None:
        self._all_models, self._model = all_models, model
        self.running_requests = all_models.running_requests.labels(model)
        self.time_to_first_token_seconds = all_models.time_to_first_token_seconds.labels(model)
        self.inter_token_latency_seconds = all_models.inter_token_latency_seconds.labels(model)
        self.request_seconds = all_models.request_seconds.labels(model)
        self.prompt_tokens_total = all_models.tokens.prompt_tokens_total.labels(model)
        self.cached_prompt_tokens_total = all_models.tokens.cached_prompt_tokens_total.labels(model)
        self.output_tokens_total = all_models.tokens.output_tokens_total.labels(model)
        self.retries_refused_total = all_models.attempts.retries_refused_total.labels(model)

    def ended(self, outcome: str) -> None:
        self._all_models.requests_total.labels(self._model, outcome).inc()

    def first_token(self, origin: str) -> None:
        self._all_models.tokens.first_tokens_total.labels(self._model, origin).inc()

    def handed_over(self, mode: str) -> None:
        self._all_models.attempts.handovers_total.labels(self._model, mode).inc()

    def worker_failed(self, error: str) -> None:
        self._all_models.attempts.worker_failures_total.labels(self._model, error).inc()

    def retried(self, way: str) -> None:
        self._all_models.attempts.retries_total.labels(self._model, way).inc()
