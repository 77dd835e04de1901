"""Which pages of the data file are free, and which of them a blob gets. Pure.

Any free page serves any blob, so a change of blob sizes leaves no room unusable. A blob gets one run of pages
when there is one, otherwise up to MOST_RUNS pieces. Runs are rounded up by at most 1/32, so that few
different lengths occur and a freed run fits the next blob exactly.
"""

from collections.abc import Iterable
from typing import NamedTuple

MOST_RUNS = 1024
_STEPS = 32  # different lengths between two powers of two


class PageRun(NamedTuple):
    first: int
    pages: int

    @property
    def end(self) -> int:
        return self.first + self.pages


class PageMap:
    """The free runs of a file of `end` pages. Neighbouring free runs are always one run."""

    def __init__(self, end: int = 0, free: Iterable[tuple[int, int]] = ()) -> None:
        """free: the first page of each free run and its end, in order; some may be empty."""
        self.end = end
        self.free_pages = 0
        self._by_first: dict[int, PageRun] = {}
        self._by_end: dict[int, PageRun] = {}
        self._by_length: dict[int, dict[int, PageRun]] = {}
        for first, free_end in free:
            self._add(first, free_end)

    def grow(self, pages: int) -> None:
        """The file has so many pages more, which are free."""
        self.end += pages
        self.give(PageRun(self.end - pages, pages))

    def take_run(self, pages: int) -> PageRun | None:
        """Takes one run of at least so many pages: one that fits exactly, or the shortest that is longer."""
        length = rounded(pages)
        if length not in self._by_length:
            length = min((one for one in self._by_length if one > length), default=0)
        return self._cut(length, rounded(pages)) if length else None

    def take_pieces(self, pages: int) -> list[PageRun]:
        """Takes exactly so many pages from the longest runs. Takes nothing when they are too few or would be
        in too many pieces."""
        pieces: list[PageRun] = []
        if pages > self.free_pages:
            return pieces
        while pages and len(pieces) < MOST_RUNS:
            longest = max(self._by_length)
            pieces.append(self._cut(longest, min(longest, pages)))
            pages -= pieces[-1].pages
        if pages:
            for piece in pieces:
                self.give(piece)
            return []
        return pieces

    def give(self, run: PageRun) -> None:
        """A taken run is free again."""
        first, end = run.first, run.end
        if before := self._by_end.get(first):
            self._remove(before)
            first = before.first
        if after := self._by_first.get(end):
            self._remove(after)
            end = after.end
        self._add(first, end)

    def check_integrity(self, used: Iterable[PageRun]) -> None:
        """Raises AssertionError unless free and used runs together are all pages, each of them once."""
        at = 0
        for run in sorted([*used, *self._by_first.values()]):
            assert run.first == at, f"pages {at} to {run.first} are lost or taken twice"
            at = run.end
        assert at == self.end
        assert self.free_pages == sum(run.pages for run in self._by_first.values())
        assert not self._by_end.keys() & self._by_first.keys(), "neighbours are one run"
        assert {run for runs in self._by_length.values() for run in runs.values()} == {
            *self._by_first.values()
        }

    # -- parts

    def _cut(self, length: int, pages: int) -> PageRun:
        """Takes the first pages of a run of this length, and leaves the rest of it free."""
        run = next(iter(self._by_length[length].values()))
        self._remove(run)
        self._add(run.first + pages, run.end)
        return PageRun(run.first, pages)

    def _add(self, first: int, end: int) -> None:
        if first == end:
            return
        run = PageRun(first, end - first)
        self._by_first[first] = self._by_end[end] = run
        self._by_length.setdefault(run.pages, {})[first] = run
        self.free_pages += run.pages

    def _remove(self, run: PageRun) -> None:
        del self._by_first[run.first], self._by_end[run.end]
        same_length = self._by_length[run.pages]
        del same_length[run.first]
        if not same_length:
            del self._by_length[run.pages]
        self.free_pages -= run.pages


def rounded(pages: int) -> int:
    """The length of the run that a blob of so many pages gets."""
    step = max(1, (1 << pages.bit_length() - 1) // _STEPS)
    return -(-pages // step) * step
