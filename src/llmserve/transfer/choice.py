"""Which transport a pair of workers uses: the manifest's order, corrected by measurement. Pure.

The first of the order that works is used, unless a later one is more than `slow_factor` times
faster. A transport whose breaker is open is left out, unless there is no other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmserve.core.request import PairStatus
from llmserve.transfer.breaker import Breaker, BreakerState


@dataclass(frozen=True, slots=True)
class Measured:
    """What a probe found. small_seconds: one read of PROBE_SMALL_BYTES. bytes_per_second: of a large one."""

    small_seconds: float
    bytes_per_second: float


@dataclass(slots=True)
class _Way:
    """One transport between the pair, and what was moved over it."""

    name: str
    breaker: Breaker = field(default_factory=Breaker)
    measured: Measured | None = None
    transfers: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: int = 0


class PairChoice:
    """Of one direction between two workers. `now` is any monotonic clock, in seconds."""

    def __init__(self, order: Sequence[str], slow_factor: float) -> None:
        """order: the names that both sides have, as the manifest orders them."""
        self._ways = {name: _Way(name) for name in order}
        self._slow_factor = slow_factor

    # -- what happened

    def probed(self, name: str, measured: Measured, now: float) -> None:
        way = self._ways[name]
        way.measured = measured
        way.breaker.succeeded(now)

    def moved(self, name: str, size_bytes: int, seconds: float) -> None:
        way = self._ways[name]
        way.transfers += 1
        way.bytes += size_bytes
        way.seconds += seconds

    def failed(self, name: str, reason: str, now: float) -> None:
        """A probe or a transfer."""
        way = self._ways[name]
        way.failures += 1
        way.breaker.failed(reason, now)

    def reason(self, name: str) -> str:
        """Why its breaker opened last; empty while it is closed."""
        return self._ways[name].breaker.reason

    # -- what follows

    def ranked(self, now: float) -> tuple[str, ...]:
        """To try in this order; the first is the chosen one."""
        closed = [way for way in self._ways.values() if way.breaker.state(now) is BreakerState.CLOSED]
        if not closed:
            return tuple(way.name for way in sorted(self._ways.values(), key=lambda w: w.breaker.retry_at))
        best = self._best(closed)
        return (best.name, *(way.name for way in closed if way is not best))

    def _best(self, ways: Sequence[_Way]) -> _Way:
        best = ways[0]
        for way in ways[1:]:
            if _speed(way) > self._slow_factor * _speed(best) > 0:
                best = way
        return best

    def expected_seconds(self, name: str, size_bytes: int) -> float | None:
        """How long a transfer should take, after the last probe. None: not probed."""
        measured = self._ways[name].measured
        if measured is None:
            return None
        return measured.small_seconds + size_bytes / measured.bytes_per_second

    def due(self, now: float) -> list[str]:
        """Transports to probe now: never probed, or with the pause after a failure over."""
        return [
            way.name
            for way in self._ways.values()
            if way.breaker.state(now) is BreakerState.HALF_OPEN
            or (way.measured is None and way.breaker.state(now) is BreakerState.CLOSED)
        ]

    def next_due(self) -> float:
        """When `due` may next name one, as things stand; infinity when never."""
        return min((way.breaker.retry_at for way in self._ways.values()), default=float("inf"))

    def rows(self, peer: str, now: float) -> Iterator[PairStatus]:
        """For status, metrics and the log."""
        chosen = next(iter(self.ranked(now)), "")
        for way in self._ways.values():
            measured = way.measured or Measured(0.0, 0.0)
            yield PairStatus(
                peer=peer,
                transport=way.name,
                chosen=way.name == chosen,
                breaker=way.breaker.state(now).value,
                reason=way.breaker.reason,
                small_seconds=measured.small_seconds,
                bytes_per_second=measured.bytes_per_second,
                transfers=way.transfers,
                bytes=way.bytes,
                seconds=way.seconds,
                failures=way.failures,
            )


def _speed(way: _Way) -> float:
    """0: unknown; it neither wins nor loses by it."""
    return way.measured.bytes_per_second if way.measured else 0.0
