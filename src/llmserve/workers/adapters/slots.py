"""Which versions are in the device slots of an engine, and which leg may start. Pure.

A leg wants a version, starts when the version is loaded, and leaves when it ends or gives up. Legs that find
no slot get one in order of arrival. A version leaves its slot only when no leg runs on it: the one that was
wanted longest ago goes first, and a pinned one only for a leg that has waited for `patience_seconds`, or when
all slots have pinned ones.

Legs of loaded versions pass those that wait for a slot, so a steady stream of them could keep all slots for
ever. Once a leg has waited for `patience_seconds`, the version that was wanted longest ago is stopped: its
new legs wait until it has left its slot, or until that is no longer needed. So a leg waits for its patience,
for the legs that run on one version, and for a load.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import inf

from llmserve.core.ids import AdapterDigest


@dataclass(frozen=True, eq=False, slots=True)
class SlotLeg:
    """A leg that wants a version. since: when it came."""

    digest: AdapterDigest
    since: float


@dataclass(frozen=True, slots=True)
class SlotMoves:
    """What is to be done now. starts: legs that may run. again_at: when to decide again even if nothing
    happens; inf: never."""

    starts: tuple[SlotLeg, ...]
    loads: tuple[AdapterDigest, ...]
    unloads: tuple[AdapterDigest, ...]
    again_at: float


class _Phase(StrEnum):
    LOADING = "loading"
    LOADED = "loaded"
    LEAVING = "leaving"


@dataclass(slots=True)
class _Resident:
    """A version in a slot. legs: those that run on it. stopped: its new legs wait, for the sake of
    others."""

    wanted_at: float
    phase: _Phase = _Phase.LOADING
    legs: int = 0
    stopped: bool = False


class DeviceSlots:
    """The caller tells it what happened, calls `decide` after each event, and does what that returns:
    `loads` end with `loaded` or `failed`, `unloads` with `unloaded`."""

    def __init__(self, slots: int, patience_seconds: float) -> None:
        self._slots, self._patience = slots, patience_seconds
        self._residents: dict[AdapterDigest, _Resident] = {}
        self._waiting: dict[SlotLeg, None] = {}
        self._running: set[SlotLeg] = set()
        self._near: dict[AdapterDigest, None] = {}  # wished for, even in the slot of an idle version
        self._warm: dict[AdapterDigest, None] = {}  # wished for in a slot that is free
        self._pinned: set[AdapterDigest] = set()
        self._retired: set[AdapterDigest] = set()

    # -- what happened

    def want(self, digest: AdapterDigest, now: float) -> SlotLeg:
        leg = SlotLeg(digest, now)
        self._waiting[leg] = None
        if digest in self._residents:
            self._residents[digest].wanted_at = now
        return leg

    def leave(self, leg: SlotLeg) -> None:
        """The leg has ended, or does not wait any longer. Idempotent."""
        self._waiting.pop(leg, None)
        if leg in self._running:
            self._running.remove(leg)
            self._residents[leg.digest].legs -= 1

    def loaded(self, digest: AdapterDigest) -> None:
        self._residents[digest].phase = _Phase.LOADED
        self._warm.pop(digest, None)
        if digest not in self._pinned:
            self._near.pop(digest, None)

    def failed(self, digest: AdapterDigest) -> list[SlotLeg]:
        """It could not be loaded. Returns the legs that waited for it and wait no more."""
        del self._residents[digest]
        self._drop_wish(digest)
        refused = [leg for leg in self._waiting if leg.digest == digest]
        for leg in refused:
            del self._waiting[leg]
        return refused

    def unloaded(self, digest: AdapterDigest) -> None:
        del self._residents[digest]
        if not self.has(digest):
            self._retired.discard(digest)

    def restore(self, digest: AdapterDigest) -> None:
        """Undoes `retire`, and forgets what was wished of the version."""
        self._forget(digest)
        self._retired.discard(digest)

    def wish(self, digest: AdapterDigest, *, near: bool, pinned: bool) -> None:
        """Asks for a version that no leg wants yet. While no leg waits, it gets a slot that is free;
        near: or that of an idle version. It gets a slot once; near and pinned: again whenever it has lost
        it."""
        self.restore(digest)
        if near and pinned:
            self._pinned.add(digest)
        (self._near if near else self._warm)[digest] = None

    def retire(self, digest: AdapterDigest) -> None:
        """Lets a version go from its slot when no leg runs on it or waits for it, whoever wants the slot."""
        self._forget(digest)
        if self.has(digest):
            self._retired.add(digest)

    def _forget(self, digest: AdapterDigest) -> None:
        self._pinned.discard(digest)
        self._drop_wish(digest)

    def _drop_wish(self, digest: AdapterDigest) -> None:
        self._near.pop(digest, None)
        self._warm.pop(digest, None)

    # -- what is

    @property
    def used(self) -> int:
        return len(self._residents)

    def is_loaded(self, digest: AdapterDigest) -> bool:
        resident = self._residents.get(digest)
        return resident is not None and resident.phase is _Phase.LOADED

    def has(self, digest: AdapterDigest) -> bool:
        """Whether the version has a slot, or a leg of it is here."""
        return digest in self._residents or digest in self.legs()

    def legs(self) -> Counter[AdapterDigest]:
        """Counts the legs of each version, those that wait and those that run."""
        return Counter(leg.digest for legs in (self._waiting, self._running) for leg in legs)

    # -- what to do

    def decide(self, now: float) -> SlotMoves:
        cold = self._cold()
        unloads = [digest for digest in self._idle() if digest in self._retired]
        self._leave_slots(unloads)
        loads = [digest for digest in cold if digest not in self._residents][: self._free]
        missing = [digest for digest in cold if digest not in loads][self._count(_Phase.LEAVING) :]
        stuck = []
        for digest in missing:
            victim = self._victim(may_be_pinned=now >= cold[digest] + self._patience)
            if victim is None:
                stuck.append(cold[digest] + self._patience)
            else:
                self._leave_slots((victim,))
                unloads.append(victim)
        self._stop_some(sum(now >= due for due in stuck))
        self._load(loads, now)
        if not cold:
            self._grant_wish(now, loads, unloads)
        again_at = min((due for due in stuck if due > now), default=inf)
        return SlotMoves(self._start(), tuple(loads), tuple(unloads), again_at)

    def _cold(self) -> dict[AdapterDigest, float]:
        """Returns the versions that legs wait for and that have no slot, or must leave theirs first, with the
        time at which the first of these legs came; in that order."""
        cold: dict[AdapterDigest, float] = {}
        for leg in self._waiting:
            resident = self._residents.get(leg.digest)
            if resident is None or resident.phase is _Phase.LEAVING:
                cold.setdefault(leg.digest, leg.since)
        return cold

    def _idle(self) -> list[AdapterDigest]:
        """Returns loaded versions that nobody uses, the one that was wanted longest ago first."""
        awaited = {leg.digest for leg in self._waiting}
        return self._longest_ago(lambda digest, it: not it.legs and (it.stopped or digest not in awaited))

    def _longest_ago(self, matches: Callable[[AdapterDigest, _Resident], bool]) -> list[AdapterDigest]:
        """Returns the loaded versions that match, pinned ones last."""
        found = [
            digest
            for digest, resident in self._residents.items()
            if resident.phase is _Phase.LOADED and matches(digest, resident)
        ]
        return sorted(found, key=lambda one: (one in self._pinned, self._residents[one].wanted_at))

    def _victim(self, *, may_be_pinned: bool) -> AdapterDigest | None:
        may_be_pinned = may_be_pinned or self._pinned.issuperset(self._residents)
        return next((one for one in self._idle() if may_be_pinned or one not in self._pinned), None)

    def _leave_slots(self, digests: Iterable[AdapterDigest]) -> None:
        for digest in digests:
            self._residents[digest].phase = _Phase.LEAVING

    def _stop_some(self, count: int) -> None:
        """Stops so many of the versions that legs run on, and no others. Those that are stopped already are
        chosen first."""
        running = self._longest_ago(lambda _, it: it.legs > 0)
        chosen = sorted(running, key=lambda one: not self._residents[one].stopped)[:count]
        for digest, resident in self._residents.items():
            resident.stopped = digest in chosen

    def _load(self, digests: Iterable[AdapterDigest], wanted_at: float) -> None:
        for digest in digests:
            self._residents[digest] = _Resident(wanted_at)

    def _grant_wish(self, now: float, loads: list[AdapterDigest], unloads: list[AdapterDigest]) -> None:
        """Begins at most one load at a time, so that the steps of running legs are not held up."""
        if self._count(_Phase.LOADED) < self.used:
            return
        if near := self._wished(self._near):
            if self._free:
                loads.extend(near)
                self._load(near, now)
            elif (victim := self._victim(may_be_pinned=False)) is not None:
                self._leave_slots((victim,))
                unloads.append(victim)
        elif self._free:
            loads.extend(warm := self._wished(self._warm))
            self._load(warm, -inf)

    def _wished(self, wishes: Iterable[AdapterDigest]) -> list[AdapterDigest]:
        """Returns the first of them that has no slot, if there is one."""
        return list(islice((one for one in wishes if one not in self._residents), 1))

    def _start(self) -> tuple[SlotLeg, ...]:
        starts = tuple(leg for leg in self._waiting if self._is_open(leg.digest))
        for leg in starts:
            del self._waiting[leg]
            self._running.add(leg)
            self._residents[leg.digest].legs += 1
        return starts

    def _is_open(self, digest: AdapterDigest) -> bool:
        return self.is_loaded(digest) and not self._residents[digest].stopped

    @property
    def _free(self) -> int:
        return self._slots - self.used

    def _count(self, phase: _Phase) -> int:
        return sum(resident.phase is phase for resident in self._residents.values())
