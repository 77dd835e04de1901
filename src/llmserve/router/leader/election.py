"""Which router leads. It leads while it holds the lease: the clock decides, not what was noticed.

A term ends when the leader has not renewed its lease in time by its own clock, or when another router has
begun a newer term. Without the shared state, the leader goes on as long as every other router promises not
to lead meanwhile, or is seen not to run (decision 0018). A router that starts, or reaches the shared state
again, waits for one lease before it campaigns: a leader that lived on promises renews its lease first.
"""

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Protocol

from llmserve.core.clock import Clock
from llmserve.core.errors import NotLeader, StateUnavailable
from llmserve.router.leader.state import SharedState, Term


@dataclass(frozen=True, slots=True)
class TermTimes:
    """lease_seconds: another router may lead this long after the last renewal; inf: there is no other
    router. renew_seconds: time between renewals. poll_seconds: time between two campaigns of a standby.
    call_seconds: deadline of each call to the shared state or to another router. settle_seconds: a new
    leader places nothing for this long. save_seconds: shortest time between two saves. So a leader that is
    killed has a successor within lease + poll + settle seconds."""

    lease_seconds: float = 2.0
    renew_seconds: float = 0.4
    poll_seconds: float = 0.1
    call_seconds: float = 0.4
    settle_seconds: float = 0.4
    save_seconds: float = 0.1

    @property
    def shared(self) -> bool:
        return math.isfinite(self.lease_seconds)

    @property
    def usable_seconds(self) -> float:
        """Part of a lease that counts, from when it was asked for: clocks may run a tenth faster or
        slower."""
        return self.lease_seconds * 0.9

    @property
    def sign_of_life_seconds(self) -> float | None:
        """Longest silence of the leader towards an apiserver; None: there is no other router to turn to."""
        return self.renew_seconds if self.shared else None


ALONE = TermTimes(lease_seconds=math.inf, renew_seconds=3600.0, settle_seconds=0.0)


@dataclass(frozen=True, slots=True)
class LeaderStatus:
    """leader: its address; empty: unknown. epoch: number of the term; 0 unless this router leads. error:
    why the shared state is not used now; empty: it is."""

    leads: bool
    leader: str
    epoch: int = 0
    error: str = ""


class LeaderCheck(Protocol):
    """Whether this router may decide. No method waits."""

    def check(self) -> None:
        """Errors: NotLeader, with the leader's address."""

    def status(self) -> LeaderStatus: ...

    def promise(self, leader: str, epoch: int, seconds: float) -> bool:
        """Another router leads and cannot renew its lease. True: this router will not lead for that many
        seconds."""


_log = logging.getLogger(__name__)


class Others(Protocol):
    """The other routers of the cluster."""

    async def promise(self, term: Term, seconds: float) -> bool:
        """True: none of them will lead for that many seconds. The call has a deadline."""


class TermHandler(Protocol):
    """Begins and ends with each term."""

    async def begin(self, term: Term) -> None:
        """Nothing may be decided before it returns. Errors: StateUnavailable; `end` is called then, too."""

    async def end(self) -> None: ...


class LeaderElection:
    """A LeaderCheck. Life: run (a task of the owner's), cancelled -> resign. clock: it must go on while the
    process is paused."""

    def __init__(
        self, state: SharedState, others: Others, handler: TermHandler, times: TermTimes, clock: Clock
    ) -> None:
        self._state, self._others, self._handler = state, others, handler
        self._times, self._clock = times, clock
        self._term: Term | None = None
        self._is_leading = False
        self._valid_until = float("-inf")
        self._keep_off_until = float("-inf")  # own promises, and those to others
        self._leader = ""
        self._error = ""

    def __repr__(self) -> str:
        return f"<LeaderElection {self.status()}>"

    # -- the mandate

    def status(self) -> LeaderStatus:
        if self._term and self._is_leading and self._clock.now() < self._valid_until:
            return LeaderStatus(True, self._term.leader, self._term.epoch, self._error)
        return LeaderStatus(False, self._leader, error=self._error)

    def check(self) -> None:
        if not self.status().leads:
            where = f"leader is at {self._leader}" if self._leader else "who leads is not known yet"
            raise NotLeader(f"not the leader; {where}", retry_after_seconds=self._times.poll_seconds)

    def promise(self, leader: str, epoch: int, seconds: float) -> bool:
        now = self._clock.now()
        if self._term and now < self._valid_until:
            return False
        self._leader = leader
        self._keep_off_until = max(self._keep_off_until, now + seconds)
        return True

    # -- terms

    async def run(self, address: str) -> None:
        """Campaigns and leads, for ever. address: where others reach this router."""
        if self._times.shared:
            self._keep_off()
        while True:
            await self._win(address)
            await self._lead()
            await asyncio.sleep(self._times.poll_seconds)

    async def resign(self) -> None:
        """Ends the lease, so that another router can lead at once. Idempotent."""
        term, self._term = self._term, None
        if term is None:
            return
        try:
            await self._state.resign(term)
        except StateUnavailable as error:
            _log.info("the lease ends by itself: %s", error.message)

    async def _win(self, address: str) -> None:
        while True:
            if await self._campaign(address):
                return
            await asyncio.sleep(self._times.poll_seconds)

    async def _campaign(self, address: str) -> bool:
        asked_at = self._clock.now()
        if asked_at < self._keep_off_until:
            return False
        try:
            answer = await self._state.campaign(address, self._times.lease_seconds)
        except StateUnavailable as error:
            self._state_failed(error)
            self._keep_off()
            return False
        self._error = ""
        if isinstance(answer, str):
            self._leader = answer
            return False
        self._term, self._valid_until = answer, asked_at + self._times.usable_seconds
        if self._clock.now() < self._keep_off_until:  # promised while it was asking
            await self.resign()
            return False
        return True

    async def _lead(self) -> None:
        assert self._term is not None
        _log.info("leads: epoch=%s", self._term.epoch)
        try:
            await self._handler.begin(self._term)
            self._leader, self._is_leading = self._term.leader, True
            await self._keep(self._term)
        except StateUnavailable as error:
            self._state_failed(error)
        finally:
            self._is_leading = False
            await self._handler.end()
        _log.warning("leads no more: epoch=%s", self._term.epoch)
        self._leader = ""
        await self.resign()

    async def _keep(self, term: Term) -> None:
        """Returns when the term is over."""
        while True:
            if not await self._renewed(term):
                return
            await asyncio.sleep(self._times.renew_seconds)

    async def _renewed(self, term: Term) -> bool:
        """False: the term is over."""
        while (asked_at := self._clock.now()) < self._valid_until:
            renewed = await self._renew(term)
            if renewed is False:
                return False
            if renewed and self._clock.now() < self._valid_until:
                self._valid_until = asked_at + self._times.usable_seconds
                return True
            await asyncio.sleep(self._times.poll_seconds)
        return False

    async def _renew(self, term: Term) -> bool | None:
        """None: neither the shared state nor all others have answered."""
        try:
            renewed = await self._state.renew(term, self._times.lease_seconds)
        except StateUnavailable as error:
            self._state_failed(error)
            return await self._others.promise(term, self._times.lease_seconds) or None
        if self._error:
            _log.info("the shared state is back")
            self._error = ""
        return renewed

    def _keep_off(self) -> None:
        until = self._clock.now() + self._times.lease_seconds
        self._keep_off_until = max(self._keep_off_until, until)

    def _state_failed(self, error: StateUnavailable) -> None:
        if not self._error:
            _log.warning("the shared state is away: %s", error.message)
        self._error = error.message
