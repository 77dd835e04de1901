"""The measurements of one request, in the apiserver's metrics and in its record."""

import time

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.core.outcome import Outcome
from llmserve.core.request import PrefillStats
from llmserve.metrics.apiserver import ApiserverMetrics


class RunStats:
    """started() and ended() exactly once, first_token() at most. str() is for the log."""

    def __init__(self, metrics: ApiserverMetrics, record: SequenceRecord) -> None:
        self._metrics, self._record = metrics, record
        self._started = self._first_token = self._ended = 0.0
        self._origin = ""
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0

    def __str__(self) -> str:
        text = f"seconds={self._ended - self._started:.3f} output_tokens={self._output_tokens}"
        if not self._origin:
            return text
        return (
            f"{text} first_token_seconds={self._first_token - self._started:.3f} origin={self._origin} "
            f"prompt_tokens={self._prompt_tokens} cached_tokens={self._cached_tokens}"
        )

    def started(self) -> None:
        self._started = time.monotonic()
        self._record.started(self._started)
        self._metrics.running_requests.inc()

    def first_token(self, origin: str, prompt_tokens: int, stats: PrefillStats) -> None:
        metrics = self._metrics
        self._first_token = time.monotonic()
        self._origin, self._prompt_tokens, self._cached_tokens = origin, prompt_tokens, stats.cached_tokens
        self._record.first_token(self._first_token, origin, prompt_tokens, stats)
        metrics.time_to_first_token_seconds.observe(self._first_token - self._started)
        metrics.first_tokens_total.labels(origin).inc()
        metrics.prompt_tokens_total.inc(prompt_tokens)
        metrics.cached_prompt_tokens_total.inc(self._cached_tokens)

    def ended(self, outcome: Outcome, output_tokens: int) -> None:
        metrics, now = self._metrics, time.monotonic()
        self._ended, self._output_tokens = now, output_tokens
        self._record.ended(now, outcome, output_tokens)
        metrics.running_requests.dec()
        metrics.requests_total.labels(outcome).inc()
        metrics.request_seconds.observe(now - self._started)
        metrics.output_tokens_total.inc(output_tokens)
        if output_tokens > 1:
            metrics.inter_token_latency_seconds.observe((now - self._first_token) / (output_tokens - 1))
