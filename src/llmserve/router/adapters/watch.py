"""Tells the log, the metrics and the calls that wait what becomes of adapters."""

import logging

from llmserve.core.adapters import AdapterState
from llmserve.metrics.router import RegistrationMetrics
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.adapters.registration import Registration
from llmserve.router.waiting import WaitingCalls

_log = logging.getLogger(__name__)


class AdapterWatch:
    """`look` is called after each decision. It costs one comparison when no adapter has changed."""

    def __init__(self, book: AdapterBook, metrics: RegistrationMetrics) -> None:
        self._book, self._metrics = book, metrics
        self._changes, self._version, self._failures = book.lifecycle.changes, book.lifecycle.version, 0
        self._prefetches = 0
        self._known: dict[int, tuple[Registration, AdapterState]] = {}
        self.calls = WaitingCalls()
        for state in AdapterState:
            self._count(state)

    def look(self) -> None:
        if self._changes == self._book.lifecycle.changes:
            return
        self._changes = self._book.lifecycle.changes
        self._metrics.fetch_failures_total.inc(self._book.lifecycle.fetch_failures - self._failures)
        self._failures = self._book.lifecycle.fetch_failures
        self._metrics.prefetches_total.inc(self._book.lifecycle.prefetches - self._prefetches)
        self._prefetches = self._book.lifecycle.prefetches
        if self._version != self._book.lifecycle.version:
            self._version = self._book.lifecycle.version
            self._tell_changes()
        self.calls.wake()

    # -- parts

    def _tell_changes(self) -> None:
        before, self._known = self._known, {one.number: (one, one.state) for one in self._book}
        seen = [one for one, _ in before.values()]
        new = [one for number, (one, _) in self._known.items() if number not in before]
        for registration in (*seen, *new):
            old = before.get(registration.number, (registration, AdapterState.REGISTERED))[1]
            if old is not registration.state:
                self._tell(registration, old)

    def _tell(self, registration: Registration, old: AdapterState) -> None:
        name, state = f"{registration.wish.name} (number {registration.number})", registration.state
        level = logging.WARNING if state is AdapterState.FAILED else logging.INFO
        details = registration.message or f"{registration.digest or 'from'} {registration.wish.source}"
        _log.log(level, "adapter %s is %s: %s", name, state, details)
        if old in (AdapterState.REGISTERED, AdapterState.FETCHING) and not registration.pending:
            ended = state if state in (AdapterState.READY, AdapterState.FAILED) else "given_up"
            self._metrics.loads_total.labels(ended).inc()

    def _count(self, state: AdapterState) -> None:
        def count() -> float:
            return sum(one.state is state for one in self._book)

        if state is not AdapterState.GONE:  # those are forgotten
            self._metrics.adapters.labels(state.value).set_function(count)
