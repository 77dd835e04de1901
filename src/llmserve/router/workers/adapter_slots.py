"""Which adapters are placed on one incarnation of a worker, and for which of them a slot is kept. Pure.

An engine runs at most `LoraShape.slots` versions at the same time. Placements never give it more, so that
it can always load a version before it runs a request of it. The router counts a version from the placement
of its first request to the end of its last one; a version that is merely still loaded does not count.

A version can wait for long while each slot has a steady flow of requests. `keep` gives it one: the version
with the fewest requests here gets no new ones, and the slot that it frees goes to nobody else.
"""

from collections import Counter
from collections.abc import Iterable

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest


class AdapterSlots:
    """take .. give_back enclose a request of a version. keep .. take, or keep .. forgo, enclose the time in
    which a slot is kept for one. The base model needs no slot, and is never named here."""

    __slots__ = ("_kept_for", "_leaving", "_placed", "_ready_at")

    def __init__(self) -> None:
        self._placed: dict[AdapterDigest, int] = {}
        self._ready_at: dict[AdapterDigest, float] = {}
        self._kept_for = self._leaving = BASE_MODEL

    def __contains__(self, adapter: AdapterDigest) -> bool:
        """Whether a request of the version is placed here."""
        return adapter in self._placed

    def __len__(self) -> int:
        return len(self._placed)

    def __repr__(self) -> str:
        return f"<AdapterSlots {self._placed} kept_for={self._kept_for!r} leaving={self._leaving!r}>"

    @property
    def kept_for(self) -> AdapterDigest:
        """The version for which a slot is kept; BASE_MODEL: for none."""
        return self._kept_for

    @property
    def fewest_requests(self) -> int:
        """Requests of the version that `keep` would choose. Called while some version is placed."""
        return min(self._placed.values())

    def fits(self, adapter: AdapterDigest, slots: int) -> bool:
        """Whether a request of the version may be placed on an engine of so many slots now."""
        if adapter in self._placed:
            return adapter != self._leaving
        kept_for_another = self._kept_for not in (BASE_MODEL, adapter)
        return len(self._placed) + kept_for_another < slots

    def ready_at(self, adapter: AdapterDigest) -> float:
        """When a version that is placed here was, or will be, loaded."""
        return self._ready_at[adapter]

    def take(self, adapter: AdapterDigest, ready_at: float = 0.0) -> None:
        """ready_at: when the version will be loaded, if this is its first request."""
        self._placed[adapter] = self._placed.get(adapter, 0) + 1
        self._ready_at.setdefault(adapter, ready_at)
        self.forgo(adapter)

    def give_back(self, adapter: AdapterDigest) -> None:
        left = self._placed[adapter] - 1
        if left:
            self._placed[adapter] = left
        else:
            del self._placed[adapter], self._ready_at[adapter]

    def keep(self, adapter: AdapterDigest) -> None:
        """Keeps the next slot for a version that has none. Called while none is kept, and some version is
        placed."""
        assert self._kept_for == BASE_MODEL, self
        self._kept_for, self._leaving = adapter, min(self._placed, key=self._placed.__getitem__)

    def forgo(self, adapter: AdapterDigest) -> None:
        """The version has its slot, or wants none any more. Ignores a version for which none is kept."""
        if adapter == self._kept_for:
            self._kept_for = self._leaving = BASE_MODEL

    def check_integrity(self, placed: Iterable[AdapterDigest]) -> None:
        """placed: versions of all placed requests. Raises AssertionError when they are counted otherwise."""
        assert self._placed == Counter(placed), self
        assert self._kept_for not in self._placed, self
        assert self._ready_at.keys() == self._placed.keys(), self
