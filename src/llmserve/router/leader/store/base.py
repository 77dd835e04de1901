"""The contract of shared state. Implementations: memory (one process) and redis.

A router leads for a term. Its lease ends by itself unless it is renewed, so that another can lead when its
process is gone. Terms have numbers that only grow (fencing): what is said in an older term counts for
nothing in a newer one. They start at the time in milliseconds, so that they grow even when the state was
lost.


The shared state that a manifest asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import unset_password
from llmserve.config.schema import State
from llmserve.core.errors import ManifestError


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


if TYPE_CHECKING:
    from llmserve.router.leader.store.redis import RedisState


def build_state(
    section: State, cluster: str, environ: Mapping[str, str], call_seconds: float
) -> SharedState | None:
    """None: the router is alone. Errors: ManifestError, when the package or the password is missing."""
    if section.redis is None or section.backend != "redis":
        return None
    refuse(unset_password(section, environ))
    variable = section.redis.password_env
    password = environ[variable] if variable is not None else None
    return _redis_state()(section.redis.url, cluster, password=password, call_seconds=call_seconds)


def state_refusals(section: State, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What build_state would refuse. Connects to nothing."""
    if section.backend != "redis":
        return
    yield from unset_password(section, environ)
    try:
        _redis_state()
    except ManifestError as error:
        yield Conflict.of(error)


def _redis_state() -> "type[RedisState]":
    """Errors: ManifestError."""
    try:
        # Here: a cluster without Redis needs no package for it.
        from llmserve.router.leader.store.redis import RedisState
    except ModuleNotFoundError as error:
        message = f"redis needs a package: {error.msg}; pip install 'redis>=5'"
        raise Conflict((("state", "backend"),), message).as_error() from error
    return RedisState
