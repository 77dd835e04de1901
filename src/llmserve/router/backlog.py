"""Prompts that one incarnation of a worker is to compute: placed there, and without a first token. Pure.

This is the queue with memory of recent work: an engine's own report is a heartbeat old, a placement is
known at once.
"""

from collections.abc import Hashable


class Backlog:
    """Times are on the router's clock. Prompts are computed in the order in which they came."""

    __slots__ = ("_began", "_pending", "_seconds")

    def __init__(self) -> None:
        self._pending: dict[Hashable, tuple[float, float]] = {}  # expected seconds, when it was added
        self._seconds = 0.0
        self._began = 0.0  # when the first of the pending could be begun

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, key: Hashable, seconds: float, now: float) -> None:
        """seconds: what it is expected to take, alone. A key is added once."""
        assert key not in self._pending, key
        if not self._pending:
            self._began = now
        self._pending[key] = (seconds, now)
        self._seconds += seconds

    def remove(self, key: Hashable, now: float) -> float:
        """It has its first token, or is given up. Returns for how long the worker was busy with it: since
        it was added, or since the one before it was done. Errors: KeyError."""
        seconds, added_at = self._pending.pop(key)
        busy = now - max(added_at, self._began)
        self._began = now
        # Rounding would add up: an empty backlog is empty.
        self._seconds = max(0.0, self._seconds - seconds) if self._pending else 0.0
        return busy

    def seconds(self, now: float) -> float:
        """Until one that is added now is begun. The first counts less the longer it runs, but one that is
        overdue takes nothing off the others."""
        if not self._pending:
            return 0.0
        first = next(iter(self._pending.values()))[0]
        return self._seconds - min(first, now - self._began)
