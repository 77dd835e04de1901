"""What is decided about a pair: which transport it uses, which one failed, how long a transfer may take, and
which pieces are compared. Pure: the caller brings the time, from any monotonic clock, in seconds.

A pair uses the first transport of the manifest's order, unless a later one is more than `slow_factor` times
faster. It leaves out a transport whose breaker is open, unless there is no other.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from llmserve.config.schema import TransferConfig
from llmserve.core.request import PairStatus

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
SAMPLED_PIECES = 16
_LEAST_LIMIT_SECONDS = 0.5
_DEFAULTS = TransferConfig()

Verify = Literal["off", "sampled", "always"]


@dataclass(frozen=True, slots=True)
class TransferPolicy:
    """slow_factor: how many times faster a later transport must be to come first. slow_share: share of its
    probed speed below which a transfer has failed. attempt_seconds: longest time of a round of copies.
    bytes_per_second: limit of all transfers of this process; None: no limit."""

    slow_factor: float = _DEFAULTS.slow_factor
    slow_share: float = _DEFAULTS.slow_share
    attempt_seconds: float = 10.0
    verify: Verify = _DEFAULTS.verify
    bytes_per_second: float | None = None

    def limit_seconds(self, expected: float | None) -> float:
        """Longest time of a copy that should take `expected` seconds (None: unknown). Never below 0.5 s: a
        busy machine stalls for that long without any fault."""
        if expected is None:
            return self.attempt_seconds
        return min(self.attempt_seconds, max(_LEAST_LIMIT_SECONDS, expected / self.slow_share))

    def sample(self, pieces: int = SAMPLED_PIECES) -> "Sample":
        """Chooses which pieces are compared with their owner's. pieces: number of pieces of the first batch;
        one of them is compared unless verify is off."""
        return Sample(self.verify, random.randrange(max(1, min(pieces, SAMPLED_PIECES))))


@dataclass(slots=True)
class Sample:
    """Chooses of the pieces of several batches, as of one: none, all, or every 16th from number `next_piece`
    on."""

    verify: Verify
    next_piece: int

    def take(self, pieces: int) -> slice:
        """Pieces of the next batch to compare."""
        if self.verify != "sampled":
            return slice(0, pieces if self.verify == "always" else 0)
        first, self.next_piece = self.next_piece, (self.next_piece - pieces) % SAMPLED_PIECES
        return slice(first, pieces, SAMPLED_PIECES)


class BreakerState(StrEnum):
    CLOSED = "closed"  # in use
    OPEN = "open"  # it failed: no request goes this way
    HALF_OPEN = "half-open"  # the pause is over: a probe decides, not a user's request


class Breaker:
    """Decides whether a transport that failed may be used again. One failure opens the breaker: the request
    in hand has another way to go. Each failure soon after the last one doubles the pause, from 1 s to 60
    s."""

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
        """Opens it. If it is open already, only the reason changes: requests that were on their way fail
        together, and count as one failure."""
        self.reason = reason
        if self.state(now) is BreakerState.OPEN:
            return
        relapse = self._retry_at is not None or now - self._closed_at < 2 * self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if relapse else FIRST_PAUSE_SECONDS
        self._retry_at = now + self._pause

    def succeeded(self, now: float) -> None:
        """Closes it after a probe. A probe that was on its way when the breaker opened proves nothing."""
        if self.state(now) is BreakerState.HALF_OPEN:
            self._closed_at, self._retry_at, self.reason = now, None, ""

    @property
    def retry_at(self) -> float:
        """Time of the next probe; infinity while closed."""
        return float("inf") if self._retry_at is None else self._retry_at


@dataclass(frozen=True, slots=True)
class Measured:
    """What a probe found. small_seconds: time of a small read. bytes_per_second: speed of a large one."""

    small_seconds: float
    bytes_per_second: float


@dataclass(slots=True)
class _Route:
    """One transport of a pair, and what was moved over it."""

    name: str
    breaker: Breaker = field(default_factory=Breaker)
    measured: Measured | None = None
    transfers: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: int = 0


class PairChoice:
    """The transports of a pair, ranked."""

    def __init__(self, order: Sequence[str], slow_factor: float) -> None:
        """order: transports that both sides have, as the manifest orders them."""
        self._routes = {name: _Route(name) for name in order}
        self._slow_factor = slow_factor

    # -- what happened

    def probed(self, name: str, measured: Measured, now: float) -> None:
        route = self._routes[name]
        route.measured = measured
        route.breaker.succeeded(now)

    def moved(self, name: str, size_bytes: int, seconds: float) -> None:
        route = self._routes[name]
        route.transfers += 1
        route.bytes += size_bytes
        route.seconds += seconds

    def failed(self, name: str, reason: str, now: float) -> None:
        """Notes that a probe or a transfer over a transport has failed."""
        route = self._routes[name]
        route.failures += 1
        route.breaker.failed(reason, now)

    def reason(self, name: str) -> str:
        """Reason why its breaker opened last; empty while it is closed."""
        return self._routes[name].breaker.reason

    # -- what follows

    def ranked(self, now: float) -> tuple[str, ...]:
        """Transports to try, in this order; the first is the chosen one."""
        closed = self._closed(now)
        if not closed:
            return tuple(
                route.name for route in sorted(self._routes.values(), key=lambda w: w.breaker.retry_at)
            )
        best = self._best(closed)
        return (best.name, *(route.name for route in closed if route is not best))

    def works(self, now: float) -> bool:
        """Whether any breaker is closed."""
        return bool(self._closed(now))

    def _closed(self, now: float) -> list[_Route]:
        return [route for route in self._routes.values() if route.breaker.state(now) is BreakerState.CLOSED]

    def _best(self, routes: Sequence[_Route]) -> _Route:
        best = routes[0]
        for route in routes[1:]:
            if _speed(route) > self._slow_factor * _speed(best) > 0:
                best = route
        return best

    def expected_seconds(self, name: str, size_bytes: int) -> float | None:
        """Time that a transfer should take, by the last probe. None: not probed."""
        measured = self._routes[name].measured
        if measured is None:
            return None
        return measured.small_seconds + size_bytes / measured.bytes_per_second

    def due(self, now: float) -> list[str]:
        """Transports to probe now: those never probed, and those whose pause after a failure is over."""
        return [
            route.name
            for route in self._routes.values()
            if route.breaker.state(now) is BreakerState.HALF_OPEN
            or (route.measured is None and route.breaker.state(now) is BreakerState.CLOSED)
        ]

    def next_due(self) -> float:
        """Earliest time at which a pause ends; infinity when no breaker is open."""
        return min((route.breaker.retry_at for route in self._routes.values()), default=float("inf"))

    def rows(self, peer: str, now: float) -> Iterator[PairStatus]:
        """The pair's part of the matrix in status, metrics and log."""
        chosen = next(iter(self.ranked(now)), "")
        for route in self._routes.values():
            measured = route.measured or Measured(0.0, 0.0)
            yield PairStatus(
                peer=peer,
                transport=route.name,
                chosen=route.name == chosen,
                breaker=route.breaker.state(now).value,
                reason=route.breaker.reason,
                small_seconds=measured.small_seconds,
                bytes_per_second=measured.bytes_per_second,
                transfers=route.transfers,
                bytes=route.bytes,
                seconds=route.seconds,
                failures=route.failures,
            )


def _speed(route: _Route) -> float:
    """0 when unknown: such a transport neither wins nor loses by its speed."""
    return route.measured.bytes_per_second if route.measured else 0.0
