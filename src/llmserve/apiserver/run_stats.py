"""The measurements of one request, in the apiserver's metrics."""

import time

from llmserve.core.outcome import Outcome
from llmserve.core.request import PrefillStats
from llmserve.metrics.apiserver import ApiserverMetrics


class RunStats:
    """Made when the request starts; ended() exactly once."""

    def __init__(self, metrics: ApiserverMetrics) -> None:
        self._metrics = metrics
        self._started = time.monotonic()
        self._first_token = 0.0
        metrics.running_requests.inc()

    def first_token(self, origin: str, prompt_tokens: int, stats: PrefillStats) -> None:
        metrics = self._metrics
        self._first_token = time.monotonic()
        metrics.time_to_first_token_seconds.observe(self._first_token - self._started)
        metrics.first_tokens_total.labels(origin).inc()
        metrics.prompt_tokens_total.inc(prompt_tokens)
        metrics.cached_prompt_tokens_total.inc(cached_tokens(stats))

    def ended(self, outcome: Outcome, output_tokens: int) -> None:
        metrics, now = self._metrics, time.monotonic()
        metrics.running_requests.dec()
        metrics.requests_total.labels(outcome).inc()
        metrics.request_seconds.observe(now - self._started)
        metrics.output_tokens_total.inc(output_tokens)
        if output_tokens > 1:
            metrics.inter_token_latency_seconds.observe((now - self._first_token) / (output_tokens - 1))


def cached_tokens(stats: PrefillStats) -> int:
    """Prompt tokens that prefill did not compute."""
    return stats.local_cached_tokens + stats.external_cached_tokens
