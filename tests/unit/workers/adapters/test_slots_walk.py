"""Random walks over the slots: what holds after each event, and how long the longest wait is."""

import random
from dataclasses import dataclass, field

import pytest

from llmserve.core.ids import AdapterDigest
from llmserve.workers.adapters.slots import DeviceSlots, SlotLeg

SLOTS, PATIENCE = 4, 5.0
TICK, LOAD_SECONDS, UNLOAD_SECONDS, LONGEST_LEG_SECONDS = 0.25, 1.0, 0.25, 8.0
ROUND_SECONDS = PATIENCE + LONGEST_LEG_SECONDS + LOAD_SECONDS + UNLOAD_SECONDS + 2 * TICK


@dataclass
class Walk:
    """ends: when a running leg ends; gives_up: when a waiting one does. most_seconds: how long a leg may
    wait, by what waits before it."""

    rng: random.Random
    slots: DeviceSlots = field(default_factory=lambda: DeviceSlots(SLOTS, PATIENCE))
    now: float = 0.0
    waiting: dict[SlotLeg, float] = field(default_factory=dict)
    gives_up: dict[SlotLeg, float] = field(default_factory=dict)
    ends: dict[SlotLeg, float] = field(default_factory=dict)
    loads: dict[AdapterDigest, float] = field(default_factory=dict)
    unloads: dict[AdapterDigest, float] = field(default_factory=dict)
    loaded: set[AdapterDigest] = field(default_factory=set)
    started: int = 0
    ended: int = 0
    failed: int = 0

    def want(self, digest: AdapterDigest, *, impatient: bool) -> None:
        ahead = len({leg.digest for leg in self.waiting} - {digest})
        leg = self.slots.want(digest, self.now)
        self.waiting[leg] = self.now + (ahead // SLOTS + 1) * ROUND_SECONDS
        if impatient:
            self.gives_up[leg] = self.now + self.rng.random() * 2 * LONGEST_LEG_SECONDS

    def tick(self) -> None:
        self.now += TICK
        self._end_what_is_due()
        moves = self.slots.decide(self.now)
        for leg in moves.starts:
            assert leg.digest in self.loaded
            assert self.now <= self.waiting.pop(leg), "it has waited for too long"
            self.started += 1
            self.ends[leg] = self.now + self.rng.random() * LONGEST_LEG_SECONDS
        for digest in moves.unloads:
            assert not any(leg.digest == digest for leg in self.ends), "it runs"
            self.loaded.remove(digest)
            self.unloads[digest] = self.now + UNLOAD_SECONDS
        for digest in moves.loads:
            assert digest not in self.loaded | self.loads.keys() | self.unloads.keys()
            self.loads[digest] = self.now + LOAD_SECONDS
        assert len(self.loaded) + len(self.loads) + len(self.unloads) == self.slots.used <= SLOTS
        assert sum(self.slots.legs().values()) == len(self.waiting) + len(self.ends)

    def _end_what_is_due(self) -> None:
        for leg in [leg for leg, due in self.gives_up.items() if due <= self.now]:
            del self.gives_up[leg]
            if self.waiting.pop(leg, None) or self.ends.pop(leg, None):
                self._leave(leg)
        for leg in [leg for leg, due in self.ends.items() if due <= self.now]:
            del self.ends[leg]
            self._leave(leg)
        for digest in _take_due(self.loads, self.now):
            if self.rng.random() < 0.05:
                for leg in self.slots.failed(digest):
                    del self.waiting[leg]
                    self.failed += 1
            else:
                self.slots.loaded(digest)
                self.loaded.add(digest)
        for digest in _take_due(self.unloads, self.now):
            self.slots.unloaded(digest)

    def _leave(self, leg: SlotLeg) -> None:
        self.slots.leave(leg)
        self.ended += 1


def _take_due(times: dict[AdapterDigest, float], now: float) -> list[AdapterDigest]:
    due = [digest for digest, at in times.items() if at <= now]
    for digest in due:
        del times[digest]
    return due


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("versions", [5, 100])
def test_no_leg_waits_longer_than_the_bound(seed: int, versions: int) -> None:
    """400 legs of 5 or 100 versions over four slots. Four of five are of as many versions as there are slots,
    and come so often that all slots have running legs all the time. A fifth gives up."""
    rng = random.Random(seed)
    walk = Walk(rng)
    names = [AdapterDigest(f"v{number}") for number in range(versions)]
    for _ in range(400):
        digest = rng.choice(names[:SLOTS]) if rng.random() < 0.8 else rng.choice(names)
        walk.want(digest, impatient=rng.random() < 0.2)
        for _ in range(rng.randint(0, 2)):
            walk.tick()
    while walk.waiting or walk.ends or walk.loads or walk.unloads:
        walk.tick()
    assert walk.ended + walk.failed == 400
    assert walk.slots.legs() == {}
