"""Whether a transport that failed may be used again. Pure: the caller brings the time."""

from enum import StrEnum

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class BreakerState(StrEnum):
    CLOSED = "closed"  # in use
    OPEN = "open"  # it failed: no request goes this way
    HALF_OPEN = "half-open"  # the pause is over: a probe decides, not a user's request


class Breaker:
    """Of one transport between one pair of workers. One failure opens it: the request in hand has
    another way to go. Each failure soon after the last doubles the pause, from 1 s to 60 s."""

    def __init__(self) -> None:
        self.reason = ""
        self._pause = FIRST_PAUSE_SECONDS
        self._retry_at: float | None = None
        self._closed_at = float("-inf")

    def state(self, now: float) -> BreakerState:
        if self._retry_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._retry_at else BreakerState.HALF_OPEN

    def failed(self, reason: str, now: float) -> None:
        """While it is open already, only the reason changes: requests that were on their way fail
        together, and that is one trouble."""
        self.reason = reason
        if self.state(now) is BreakerState.OPEN:
            return
        relapse = self._retry_at is not None or now - self._closed_at < 2 * self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if relapse else FIRST_PAUSE_SECONDS
        self._retry_at = now + self._pause

    def succeeded(self, now: float) -> None:
        """A probe went well. One that was on its way when the breaker opened proves nothing."""
        if self.state(now) is BreakerState.HALF_OPEN:
            self._closed_at, self._retry_at, self.reason = now, None, ""

    @property
    def retry_at(self) -> float:
        """When the next probe is due; infinity while closed."""
        return float("inf") if self._retry_at is None else self._retry_at
