"""The contract of shared state. Implementations: memory (one process) and redis.

A router leads for a term. Its lease ends by itself unless it is renewed, so another router can lead when
the process is gone. The number of a term only grows (fencing): a message of an older term counts for
nothing in a newer one. Numbers start at the time in milliseconds, so they grow even when the state was
lost.
"""

from dataclasses import dataclass
from typing import Protocol


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

    async def save(self, term: Term, text: str) -> bool:
        """Replaces the saved text. False, and nothing is saved: the lease is not this term's."""

    async def load(self) -> Saved | None:
        """Returns what was saved last, in any term."""

    async def aclose(self) -> None:
        """Idempotent."""
