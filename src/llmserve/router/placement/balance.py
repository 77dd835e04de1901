"""How often each worker, and each adapter, was placed lately. Pure."""

from typing import Generic, TypeVar

from llmserve.core.ids import WorkerId

Key = TypeVar("Key")

_REMEMBERED_EACH = 16.0  # placements for each worker
_LARGEST_UNIT = 1e12


class RecentCounts(Generic[Key]):
    """Counts in which older events count less. The latest event counts `unit`, which grows, so that no older
    count has to change."""

    def __init__(self) -> None:
        self.total = 0.0
        self.unit = 1.0
        self._counts: dict[Key, float] = {}

    def add(self, key: Key, remembered: float) -> None:
        """remembered: events after which an old one counts a third."""
        self.unit /= 1.0 - 1.0 / (remembered + 1)
        self._counts[key] = self._counts.get(key, 0.0) + self.unit
        self.total += self.unit
        if self.unit > _LARGEST_UNIT:
            self._shrink()

    def share(self, key: Key) -> float:
        """The part of all events that are of this key; 0 before the first."""
        return self._counts.get(key, 0.0) / self.total if self.total else 0.0

    def above(self, count: float) -> set[Key]:
        """Keys that count more than this, in the same unit as `total`."""
        return {key for key, own in self._counts.items() if own > count}

    def _shrink(self) -> None:
        """Rescales the counts, and forgets keys without an event for long: workers and adapters come and
        go."""
        scaled = {key: count / self.unit for key, count in self._counts.items()}
        self._counts = {key: count for key, count in scaled.items() if count > 1e-6}
        self.total = sum(self._counts.values())
        self.unit = 1.0


# Times the fair share. Requests over the whole run stay below 1.5 times, with what chance adds.
_BOUND = 1.3


class PlacementBalance:
    """Counts the placements of one group of workers, and names those with more than their share lately.

    A worker's cache draws requests to it, and each of them fills the cache further: without a bound, one
    worker would get all requests with a popular prompt for as long as it has no queue. A worker over the
    bound is judged as if it had nothing cached and no adapter loaded; its speed and its queue count as
    before."""

    def __init__(self) -> None:
        self._counts: RecentCounts[WorkerId] = RecentCounts()

    def placed(self, key: WorkerId, workers: int) -> None:
        """One of so many workers got a request."""
        self._counts.add(key, _REMEMBERED_EACH * workers)

    def over(self, workers: int) -> set[WorkerId]:
        """Workers with more than their share. One request more or less never decides."""
        return self._counts.above(_BOUND * self._counts.total / workers + self._counts.unit)
