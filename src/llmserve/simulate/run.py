"""Runs a simulation, from requests to a report."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmserve.core.clock import Agenda
from llmserve.core.errors import LLMServeError
from llmserve.simulate.cluster import VirtualCluster
from llmserve.simulate.observed import SimRecord, Timeline
from llmserve.simulate.report import Goals, SimReport, make_report
from llmserve.simulate.shape import ClusterShape
from llmserve.traces import TracedRequest

# In this long every request gets a token, or never one.
_STALLED_SECONDS = 3600.0
_EVENTS_BETWEEN_NEWS = 5_000


@dataclass(frozen=True, slots=True)
class Progress:
    """now: virtual seconds."""

    now: float
    arrived: int
    ended: int
    of: int


class Simulation:
    """One run: run, then timeline and report. The same shape, requests and seed give the same result."""

    def __init__(self, shape: ClusterShape, requests: Sequence[TracedRequest], *, seed: int = 0) -> None:
        versions = dict.fromkeys(request.adapter for request in requests if request.adapter)
        self._shape = shape = replace(shape, adapters=replace(shape.adapters, versions=tuple(versions)))
        self._agenda = Agenda()
        self._cluster = VirtualCluster(shape, self._agenda, random.Random(seed))
        self._records = [SimRecord(request) for request in requests]
        self._arrived = 0
        self._put_down_next()

    @property
    def timeline(self) -> Timeline:
        return self._cluster.observed.timeline

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
        """Runs to the end of the last request. Errors: LLMServeError when some requests never end."""
        events = 0
        while self._arrived < len(self._records) or self._cluster.open_requests:
            self._agenda.step()
            events += 1
            if events % _EVENTS_BETWEEN_NEWS == 0:
                on_progress(self._progress())
                self._check_moving()
        on_progress(self._progress())

    def check_integrity(self) -> None:
        """Raises AssertionError when a request or a block was lost, or counted other than once."""
        self._cluster.check_integrity()

    def report(self, goals: Goals) -> SimReport:
        return make_report(self._records, self._cluster, self._shape.weights, goals)

    def _put_down_next(self) -> None:
        if self._arrived < len(self._records):
            self._agenda.at(self._records[self._arrived].request.arrived_at, self._arrive)

    def _arrive(self) -> None:
        """Adds all requests that arrive now, before anything that follows from one of them."""
        while self._arrived < len(self._records):
            record = self._records[self._arrived]
            if record.request.arrived_at > self._agenda.now:
                break
            self._arrived += 1
            self._cluster.arrive(record)
        self._put_down_next()

    def _progress(self) -> Progress:
        ended = self._arrived - self._cluster.open_requests
        return Progress(self._agenda.now, self._arrived, ended, len(self._records))

    def _check_moving(self) -> None:
        still = self._agenda.now - max(self._cluster.moved_at, self._last_arrival())
        if self._cluster.open_requests and still > _STALLED_SECONDS:
            raise LLMServeError(
                f"{self._cluster.open_requests} requests have had no token for {still:.0f} virtual seconds: "
                "their KV fills all blocks (engine.sim.blocks)"
            )

    def _last_arrival(self) -> float:
        return self._records[self._arrived - 1].request.arrived_at if self._arrived else 0.0
