"""Time as an argument, so that every decision can be tested without waiting."""

import heapq
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds. Only differences mean anything."""


class SystemClock:
    def now(self) -> float:
        return time.monotonic()


class LeaseClock:
    """A clock for what must end in time: it goes on while the machine is suspended or the process is
    stopped."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class ProcessClock:
    """A clock that goes on while a thread of this process computes: other processes that share the cores do
    not move it."""

    def now(self) -> float:
        return time.process_time()


class VirtualClock:
    """A clock that moves only by `advance`."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "time does not go back"
        self._now += seconds


_Event = Callable[[], None]


class Agenda:
    """A queue of events in virtual time. Events of the same time happen in the order in which they were
    added. `clock` shows the time."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self._events: list[tuple[float, int, _Event]] = []
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Agenda at={self.now:g} events={len(self._events)}>"

    @property
    def now(self) -> float:
        return self.clock.now()

    def at(self, when: float, event: _Event) -> None:
        """An event of the past happens now."""
        self._sequence += 1
        heapq.heappush(self._events, (max(when, self.now), self._sequence, event))

    def step(self) -> bool:
        """Runs the next event. False: there is none."""
        if not self._events:
            return False
        when, _, event = heapq.heappop(self._events)
        self.clock.advance(max(0.0, when - self.now))
        event()
        return True
