"""Connections whose other end has proved nothing yet: how many there may be, and which one has to go."""

from collections import Counter
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_UNPROVEN = 64


class UnprovenConnections(Generic[T]):
    """The unproven connections of one server. A new one is always let in, so that strangers who keep many
    open keep nobody out. Pure; the owner locks."""

    def __init__(self, most: int = MAX_UNPROVEN) -> None:
        self._most = most
        self._addresses: dict[T, str] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._addresses)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._addresses))

    def add(self, connection: T, address: str) -> T | None:
        """Returns the connection that the owner has to drop to make room, which does not count any more: the
        oldest one of the address that has the most. None: there is room."""
        dropped = self._oldest_of_the_most() if len(self) >= self._most else None
        if dropped is not None:
            self.remove(dropped)
        self._addresses[connection] = address
        return dropped

    def remove(self, connection: T) -> None:
        """It has proved itself, or has ended. Idempotent."""
        self._addresses.pop(connection, None)

    def _oldest_of_the_most(self) -> T:
        counts = Counter(self._addresses.values())
        most = max(counts.values())
        return next(one for one, address in self._addresses.items() if counts[address] == most)
