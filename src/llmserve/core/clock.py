"""Time as an argument, so that every decision can be tested without waiting."""

import time
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


class VirtualClock:
    """A clock that moves only by `advance`."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "time does not go back"
        self._now += seconds
