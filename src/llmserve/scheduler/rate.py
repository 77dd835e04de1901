"""How fast requests are served, for an honest Retry-After."""

# Older service counts for half each time this much more backlog has been seen.
_HALVED_EVERY_SECONDS = 30.0


class ServiceRate:
    """Departures per second while requests wait: the rate of a system that is busy. Time without
    a backlog says nothing of it and is not counted; a stall with one is."""

    def __init__(self) -> None:
        self._requests = 0.0
        self._seconds = 0.0
        self._counted_to: float | None = None  # None: there is no backlog

    def backlog(self, there_is: bool, now: float) -> None:
        """Told when the queue fills from empty and when it empties; harmless when repeated."""
        if self._counted_to is not None:
            self._count(now)
        self._counted_to = now if there_is else None

    def departed(self, now: float) -> None:
        if self._counted_to is not None:
            self._count(now)
            self._requests += 1

    def wait_seconds(self, requests: int, now: float, longest: float) -> float:
        """Expected time until this many have departed; `longest` caps it, and stands in for it
        while none has departed yet."""
        if self._counted_to is not None:
            self._count(now)
        if not self._requests:
            return longest
        return min(longest, requests * self._seconds / self._requests)

    def _count(self, now: float) -> None:
        assert self._counted_to is not None
        self._seconds += now - self._counted_to
        self._counted_to = now
        if self._seconds > _HALVED_EVERY_SECONDS:
            self._seconds /= 2
            self._requests /= 2
