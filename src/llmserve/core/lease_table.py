"""A table of leases: entries that end when they are released or when their time is over. Pure.

A lease is a value under a key. `grant` opens it, `renew` moves its end, `release` ends it, and `take_expired`
ends those whose time is over. An overdue lease stays open until `take_expired` hands it to its owner, so that
no end goes unnoticed: an owner calls `take_expired` before it answers a question about a lease. The table
remembers the keys of the last leases that ended, so that a late message gets ENDED instead of UNKNOWN.

A table is not thread-safe.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from math import inf
from typing import Generic, TypeVar

from llmserve.core.clock import Clock
from llmserve.core.deadlines import Deadlines

REMEMBERED_ENDS = 4096

K = TypeVar("K", bound=int | str | bytes)
V = TypeVar("V")


class LeaseAnswer(StrEnum):
    """What a message about a lease finds."""

    VALID = "valid"
    ENDED = "ended"  # released or expired before
    WRONG_EPOCH = "wrong_epoch"  # granted by another incarnation
    UNKNOWN = "unknown"  # never granted, not granted yet, or ended long ago


class LeaseTable(Mapping[K, V], Generic[K, V]):
    """The open leases as a mapping, in the order of their grants."""

    def __init__(self, clock: Clock, *, epoch: int = 0, remembered_ends: int = REMEMBERED_ENDS) -> None:
        """epoch: incarnation of the granter. remembered_ends: number of ended keys to remember; with 0
        a key may be granted again after its end."""
        self.epoch = epoch
        self._clock, self._remembered_ends = clock, remembered_ends
        self._open: dict[K, V] = {}
        self._deadlines: Deadlines[K] = Deadlines()
        self._ended: dict[K, None] = {}

    def __getitem__(self, key: K) -> V:
        return self._open[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def grant(self, key: K, value: V, seconds: float = inf) -> None:
        """Opens a lease, or replaces the open one of this key."""
        assert key not in self._ended, f"lease {key!r} has ended; a key is used once"
        self._open[key] = value
        self._deadlines.put(key, self._clock.now() + seconds)

    def check(self, key: K, epoch: int = 0) -> LeaseAnswer:
        """epoch: incarnation that the message is meant for."""
        if epoch != self.epoch:
            return LeaseAnswer.WRONG_EPOCH
        if key in self._open:
            return LeaseAnswer.VALID
        return LeaseAnswer.ENDED if key in self._ended else LeaseAnswer.UNKNOWN

    def renew(self, key: K, seconds: float, epoch: int = 0) -> LeaseAnswer:
        """Lets a VALID lease run for `seconds` from now."""
        answer = self.check(key, epoch)
        if answer is LeaseAnswer.VALID:
            self._deadlines.put(key, self._clock.now() + seconds)
        return answer

    def release(self, key: K) -> V:
        """Ends an open lease and returns its value. Errors: KeyError if it is not open."""
        value = self._open.pop(key)
        self._deadlines.drop(key)
        self._remember(key)
        return value

    def take_expired(self) -> list[tuple[K, V]]:
        """Ends the leases whose time is over and returns each of them once, the most overdue first."""
        return [(key, self.release(key)) for key in self._deadlines.take_due(self._clock.now())]

    def remaining_seconds(self, key: K) -> float:
        """Seconds until an open lease expires; negative when it is overdue."""
        return self._deadlines[key] - self._clock.now()

    def check_integrity(self) -> None:
        """Raises AssertionError if the table contradicts itself. For tests and debugging."""
        self._deadlines.check_integrity(set(self._open))
        assert not self._open.keys() & self._ended.keys(), "a lease is open or ended"
        assert len(self._ended) <= self._remembered_ends

    def _remember(self, key: K) -> None:
        self._ended[key] = None
        if len(self._ended) > self._remembered_ends:
            del self._ended[next(iter(self._ended))]
