"""What is due when: waiting requests, leases, reservations. Pure."""

import heapq
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=int | str | bytes)


class Deadlines(Generic[_T]):
    """One time for each name; a name that is set again or dropped leaves an entry that is skipped later."""

    def __init__(self) -> None:
        self._when: dict[_T, float] = {}
        self._heap: list[tuple[float, _T]] = []

    def __len__(self) -> int:
        return len(self._when)

    def put(self, name: _T, when: float) -> None:
        self._when[name] = when
        heapq.heappush(self._heap, (when, name))
        if len(self._heap) > 2 * len(self._when) + 64:
            self._heap = [(at, one) for one, at in self._when.items()]
            heapq.heapify(self._heap)

    def drop(self, name: _T) -> None:
        self._when.pop(name, None)

    def take_due(self, now: float) -> list[_T]:
        """Names whose time has come, each once."""
        due: list[_T] = []
        while self._heap and self._heap[0][0] <= now:
            when, name = heapq.heappop(self._heap)
            if self._when.get(name) == when:
                del self._when[name]
                due.append(name)
        return due

    def next(self) -> float | None:
        """None: nothing is waited for."""
        while self._heap and self._when.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def check_integrity(self, names: set[_T]) -> None:
        """Raises AssertionError when these are not the names that have a time, or one of them is lost."""
        assert self._when.keys() == names
        assert {(when, name) for name, when in self._when.items()} <= set(self._heap)
