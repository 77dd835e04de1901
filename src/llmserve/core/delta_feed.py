"""A feed of a set to a receiver that keeps a copy of it: a snapshot first, then changes. Pure.

Changes merge while they wait, so that what waits is never more than the set itself and the keys that have
left it. Deltas are numbered from 1, and the receiver asks for a snapshot when a number is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Delta(Generic[K]):
    """What changed since delta `sequence` - 1. No key is both removed and stored.

    is_snapshot: the receiver drops all it has first; `stored` is the whole set, or the first piece of it."""

    sequence: int
    is_snapshot: bool
    removed: tuple[K, ...]
    stored: tuple[K, ...]


class DeltaFeed(Generic[K]):
    """What one receiver was not sent yet. The first delta is a snapshot."""

    def __init__(self) -> None:
        self.sequence = 0  # of the last delta
        self._is_snapshot = True
        self._removed: dict[K, None] = {}
        self._stored: dict[K, None] = {}

    @property
    def has_changes(self) -> bool:
        """Also while a snapshot of an empty set waits."""
        return bool(self._is_snapshot or self._removed or self._stored)

    @property
    def removals(self) -> int:
        """Number of removed keys that wait."""
        return len(self._removed)

    def store(self, keys: Iterable[K]) -> None:
        for key in keys:
            self._removed.pop(key, None)
            self._stored[key] = None

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            self._stored.pop(key, None)
            if not self._is_snapshot:
                self._removed[key] = None

    def reset(self, keys: Iterable[K]) -> None:
        """Lets the next delta be a snapshot of `keys`, which are the whole set."""
        self._is_snapshot, self._removed, self._stored = True, {}, dict.fromkeys(keys)

    def take(self, most_keys: int | None = None) -> Delta[K]:
        """The next delta, of at most so many keys. What is left, or changes later, is in those after it."""
        removed = _take_first(self._removed, most_keys)
        stored = _take_first(self._stored, None if most_keys is None else most_keys - len(removed))
        self.sequence += 1
        is_snapshot, self._is_snapshot = self._is_snapshot, False
        return Delta(self.sequence, is_snapshot, removed, stored)


def _take_first(keys: dict[K, None], most: int | None) -> tuple[K, ...]:
    first = tuple(islice(keys, most))
    for key in first:
        del keys[key]
    return first
