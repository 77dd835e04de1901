"""Shared state in this process: for a single router, and for tests."""

import time

from llmserve.core.clock import Clock
from llmserve.router.leader.store.base import Saved, Term


class MemoryState:
    """Routers that get the same object share it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = 0
        self._term: Term | None = None
        self._ends_at = 0.0
        self._saved: tuple[str, float] | None = None

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

    async def save(self, term: Term, text: str) -> bool:
        if self._term != term or self._clock.now() >= self._ends_at:
            return False
        self._saved = (text, self._clock.now())
        return True

    async def load(self) -> Saved | None:
        return Saved(self._saved[0], self._clock.now() - self._saved[1]) if self._saved else None

    async def aclose(self) -> None:
        """Nothing is open."""

    def _grant(self, term: Term, seconds: float) -> Term:
        self._term, self._ends_at = term, self._clock.now() + seconds
        return term
