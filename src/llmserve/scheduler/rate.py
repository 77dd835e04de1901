"""How fast requests end, for an honest Retry-After."""

# Older service counts for half each time this much more backlog has been seen.
_HALVED_EVERY_SECONDS = 30.0


class ServiceRate:
    """Departures per second (of requests, tokens, or another amount) while somebody waits: the rate of a
    busy system. Time without a backlog is not counted; a stall with a backlog is."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0
        self._counted_to: float | None = None  # None: there is no backlog

    def backlog(self, there_is: bool, now: float) -> None:
        """Called when the queue fills from empty and when it empties; harmless when repeated."""
        if self._counted_to is not None:
            self._count(now)
        self._counted_to = now if there_is else None

    def departed(self, now: float, amount: float = 1.0) -> None:
        if self._counted_to is not None:
            self._count(now)
            self._amount += amount

    def wait_seconds(self, amount: float, now: float, longest: float) -> float:
        """Expected time until this amount has departed, at most `longest`; `longest` while nothing has
        departed yet."""
        if self._counted_to is not None:
            self._count(now)
        if not self._amount:
            return longest
        return min(longest, amount * self._seconds / self._amount)

    def _count(self, now: float) -> None:
        assert self._counted_to is not None
        self._seconds += now - self._counted_to
        self._counted_to = now
        if self._seconds > _HALVED_EVERY_SECONDS:
            self._seconds /= 2
            self._amount /= 2
