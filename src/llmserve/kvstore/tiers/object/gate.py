"""Refuses requests at once while the bucket is away, and lets one through now and then. Pure."""

from llmserve.core.clock import Clock
from llmserve.transfer.engine.choice import Breaker, BreakerState


class Gate:
    """One for all requests of a tier. `enter` comes before a request and its retries; `passed` or `failed`
    after it, `left` when it ended without proving anything."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._breaker = Breaker()
        self._probing = False

    def __repr__(self) -> str:
        return f"<Gate {self._breaker.state(self._clock.now())} {self._breaker.reason!r}>"

    @property
    def reason(self) -> str:
        return self._breaker.reason

    def enter(self) -> bool:
        """False: do not send it. When a pause is over, one request goes ahead of the others."""
        state = self._breaker.state(self._clock.now())
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and self._probing):
            return False
        self._probing = state is BreakerState.HALF_OPEN
        return True

    def passed(self) -> None:
        self._probing = False
        self._breaker.succeeded(self._clock.now())

    def failed(self, reason: str) -> bool:
        """True when this closed it."""
        self._probing = False
        was_open = self._breaker.state(self._clock.now()) is not BreakerState.OPEN
        self._breaker.failed(reason, self._clock.now())
        return was_open

    def left(self) -> None:
        self._probing = False
