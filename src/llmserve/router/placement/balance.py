"""Which workers got more than their share of placements lately. Pure.

A worker's cache draws requests to it, and each of them fills the cache further: without a bound, one worker
would get all requests with a popular prompt for as long as it has no queue. A worker over the bound is
judged as if it had nothing cached; its speed and its queue count as before.
"""

from llmserve.core.ids import WorkerId

# Times the fair share. Requests over the whole run stay below 1.5 times, with what chance adds.
_BOUND = 1.3
_REMEMBERED_EACH = 16.0  # placements for each worker
_LARGEST_UNIT = 1e12


class PlacementBalance:
    """Counts the placements of one group of workers. Older placements count less: the latest one counts
    `_unit`, which grows, so that no older count has to change."""

    def __init__(self) -> None:
        self._counts: dict[WorkerId, float] = {}
        self._total = 0.0
        self._unit = 1.0

    def placed(self, key: WorkerId, workers: int) -> None:
        """One of so many workers got a request."""
        self._unit /= 1.0 - 1.0 / (_REMEMBERED_EACH * workers + 1)
        self._counts[key] = self._counts.get(key, 0.0) + self._unit
        self._total += self._unit
        if self._unit > _LARGEST_UNIT:
            self._shrink()

    def over(self, workers: int) -> set[WorkerId]:
        """Workers with more than their share. One request more or less never decides."""
        most = _BOUND * self._total / workers + self._unit
        return {key for key, count in self._counts.items() if count > most}

    def _shrink(self) -> None:
        """Rescales the counts, and forgets workers that got nothing for long: workers come and go."""
        scaled = {key: count / self._unit for key, count in self._counts.items()}
        self._counts = {key: count for key, count in scaled.items() if count > 1e-6}
        self._total = sum(self._counts.values())
        self._unit = 1.0
