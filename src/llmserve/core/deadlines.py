"""Times at which named things are due: waiting requests, leases. Pure."""

import heapq
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=int | str | bytes)


class Deadlines(Generic[_T]):
    """One time for each name. A name that is put again or dropped leaves a heap entry to be skipped later."""

    def __init__(self) -> None:
        self._when: dict[_T, float] = {}
        self._heap: list[tuple[float, _T]] = []

    def __len__(self) -> int:
        return len(self._when)

    def __getitem__(self, name: _T) -> float:
        """Time of a name. Errors: KeyError if it has none."""
        return self._when[name]

    def put(self, name: _T, when: float) -> None:
        self._when[name] = when
        heapq.heappush(self._heap, (when, name))
        if len(self._heap) > 2 * len(self._when) + 64:
            self._heap = [(at, one) for one, at in self._when.items()]
            heapq.heapify(self._heap)

    def drop(self, name: _T) -> None:
        self._when.pop(name, None)

    def take_due(self, now: float) -> list[_T]:
        """Drops the names whose time has come and returns them, the earliest first."""
        due: list[_T] = []
        while self._heap and self._heap[0][0] <= now:
            when, name = heapq.heappop(self._heap)
            if self._when.get(name) == when:
                del self._when[name]
                due.append(name)
        return due

    def next(self) -> float | None:
        """The earliest time, or None when there is no name."""
        while self._heap and self._when.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def check_integrity(self, names: set[_T]) -> None:
        """Raises AssertionError unless exactly these names have a time and none of them is lost."""
        assert self._when.keys() == names
        assert {(when, name) for name, when in self._when.items()} <= set(self._heap)
