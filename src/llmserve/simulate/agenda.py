"""A queue of events in virtual time."""

import heapq
from collections.abc import Callable

from llmserve.core.clock import VirtualClock

Event = Callable[[], None]


class Agenda:
    """Events of the same time happen in the order in which they were added. `clock` shows the time."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self._events: list[tuple[float, int, Event]] = []
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Agenda at={self.now:g} events={len(self._events)}>"

    @property
    def now(self) -> float:
        return self.clock.now()

    def at(self, when: float, event: Event) -> None:
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
