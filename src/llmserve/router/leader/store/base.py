"""The contract of shared state. Implementations: memory (one process) and redis.

A router leads for a term. Its lease ends by itself unless it is renewed, so that another can lead when its
process is gone. Terms have numbers that only grow (fencing): what is said in an older term counts for
nothing in a newer one. They start at the time in milliseconds, so that they grow even when the state was
lost.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Term:
    """epoch: its number. leader: the router's address."""

    epoch: int
    leader: str


@dataclass(frozen=True, slots=True)
class Saved:
    """age_seconds: since it was saved, by the state's own clock."""

    text: str
    age_seconds: float


class SharedState(Protocol):
    """Called by one task of each router, and a second one that saves. Every call has a deadline.
    Errors of all of them: StateUnavailable; what was asked for may have been done then."""

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        """Begins a term with a lease of this many seconds, if nobody has one. Otherwise says who has."""

    async def renew(self, term: Term, seconds: float) -> bool:
        """The lease is for this many seconds from now on. Also when it has ended, or was lost by the state,
        and there was no newer term. False: there was one, or there is."""

    async def resign(self, term: Term) -> None:
        """Ends the lease, if it is still this term's."""

    async def save(self, term: Term, text: str) -> bool:
        """In place of what was saved before. False, and nothing is saved: the lease is not this term's."""

    async def load(self) -> Saved | None:
        """What was saved last, in whatever term."""

    async def aclose(self) -> None:
        """Idempotent."""
