"""Which beginnings of prompts were found cached most often lately. Pure."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash, TenantId

HALF_SECONDS = 150.0
MOST_HALF = 512
SHOWN = 10


@dataclass(frozen=True, slots=True)
class HotPrefix:
    """A beginning of prompts, by the hash of its last block. tenant: whose prompt it was last. uses: prompts
    that were placed where it was cached. used_at: time of the last one."""

    block_hash: BlockHash
    tenant: TenantId
    blocks: int
    tokens: int
    uses: int
    used_at: float


class HotPrefixes:
    """Counts over the last 150 to 300 s, in two halves. A half that is full ends early, so that the memory is
    bounded; a prefix that is used often is soon in the next one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._young: dict[BlockHash, HotPrefix] = {}
        self._old: dict[BlockHash, HotPrefix] = {}
        self._young_since = clock.now()

    def used(self, block_hash: BlockHash, tenant: TenantId, blocks: int, tokens: int) -> None:
        now = self._clock.now()
        self._age(now)
        known = self._young.get(block_hash)
        uses = known.uses + 1 if known else 1
        self._young[block_hash] = HotPrefix(block_hash, tenant, blocks, tokens, uses, now)

    def hottest(self) -> list[HotPrefix]:
        """Returns those that were used most often, the hottest first."""
        self._age(self._clock.now())
        return heapq.nlargest(SHOWN, self._all(), key=lambda one: (one.uses, one.used_at))

    def _all(self) -> Iterator[HotPrefix]:
        for key, one in self._young.items():
            before = self._old.get(key)
            yield replace(one, uses=one.uses + before.uses) if before else one
        yield from (one for key, one in self._old.items() if key not in self._young)

    def _age(self, now: float) -> None:
        """Begins a new half when the young one is full or its time is over."""
        halves = int((now - self._young_since) // HALF_SECONDS)
        if halves or len(self._young) >= MOST_HALF:
            self._young, self._old = {}, self._young if halves <= 1 else {}
            self._young_since = now
