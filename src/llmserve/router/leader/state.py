"""State that the routers of a cluster share: who leads, and what the last leader saved. It is in memory for a
single router and for tests, else in Redis (redis_state.py).

A router leads for a term. Its lease ends by itself unless it is renewed, so another router can lead when
the process is gone. The number of a term only grows (fencing): a message of an older term counts for
nothing in a newer one. Numbers start at the time in milliseconds, so they grow even when the state was
lost.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llmserve.core.clock import Clock


@dataclass(frozen=True, slots=True)
class Term:
    """epoch: number of the term. leader: address of the router."""

    epoch: int
    leader: str


@dataclass(frozen=True, slots=True)
class Saved:
    """age_seconds: time since the text was saved, by the state's own clock."""

    text: str
    age_seconds: float


class StateKey(StrEnum):
    """What a leader saves, each apart from the others."""

    SCHEDULER = "scheduler"
    ADAPTERS = "adapters"
    MODELS = "models"


class SharedState(Protocol):
    """One task of each router calls it, and a second one saves. Every call has a deadline. Each call may
    raise StateUnavailable; its effect may have happened then."""

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        """Begins a term with a lease of this many seconds, if nobody holds one. Otherwise returns the
        leader's address."""

    async def renew(self, term: Term, seconds: float) -> bool:
        """Extends the lease to this many seconds from now, even if it has expired or the state has lost it,
        as long as there was no newer term. False: there was one."""

    async def resign(self, term: Term) -> None:
        """Ends the lease, if it is still this term's."""

    async def save(self, term: Term, text: str, key: StateKey = StateKey.SCHEDULER) -> bool:
        """Replaces the text that is saved under this key. False, and nothing is saved: the lease is not this
        term's."""

    async def load(self, key: StateKey = StateKey.SCHEDULER) -> Saved | None:
        """Returns what was saved last under this key, in any term."""

    async def aclose(self) -> None:
        """Idempotent."""


class MemoryState:
    """Routers that get the same object share it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = 0
        self._term: Term | None = None
        self._ends_at = float("-inf")
        self._saved: dict[StateKey, tuple[str, float]] = {}

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        if self._term and self._clock.now() < self._ends_at:
            return self._term.leader
        self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
        return self._grant(Term(self._epoch, leader), seconds)

    async def renew(self, term: Term, seconds: float) -> bool:
        if term.epoch < self._epoch:
            return False
        self._epoch = term.epoch
        self._grant(term, seconds)
        return True

    async def resign(self, term: Term) -> None:
        if self._term == term:
            self._term = None

    async def save(self, term: Term, text: str, key: StateKey = StateKey.SCHEDULER) -> bool:
        if self._term != term or self._clock.now() >= self._ends_at:
            return False
        self._saved[key] = (text, self._clock.now())
        return True

    async def load(self, key: StateKey = StateKey.SCHEDULER) -> Saved | None:
        if key not in self._saved:
            return None
        text, saved_at = self._saved[key]
        return Saved(text, self._clock.now() - saved_at)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _grant(self, term: Term, seconds: float) -> Term:
        self._term, self._ends_at = term, self._clock.now() + seconds
        return term
