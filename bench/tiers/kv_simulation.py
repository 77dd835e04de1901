"""Tiers without bytes: requests against the indexes of DRAM and, below it, NVMe."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.tiers.kv_workloads import KvRequest
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.eviction import (
    Added,
    Admission,
    EvictionRules,
    FrequencySketch,
    LowerTier,
    MakePolicy,
    TierIndex,
    Victim,
    WriteMode,
    WriteStep,
    on_evicted,
    on_stored,
)


@dataclass(slots=True)
class Hits:
    """In blocks. below: hits that the upper tier missed. written: to the lower tier."""

    asked: int = 0
    upper: int = 0
    below: int = 0
    written: int = 0
    of_tenant: dict[TenantId, tuple[int, int]] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        return 100 * (self.upper + self.below) / max(self.asked, 1)

    def tenant_percent(self, tenant: TenantId) -> float:
        asked, hit = self.of_tenant[tenant]
        return 100 * hit / asked

    def note(self, request: KvRequest, upper: int, below: int = 0) -> None:
        self.asked += request.prompt_blocks
        self.upper += upper
        self.below += below
        asked, hit = self.of_tenant.get(request.tenant, (0, 0))
        self.of_tenant[request.tenant] = (asked + request.prompt_blocks, hit + upper + below)


def everything_kept(requests: Iterable[KvRequest]) -> tuple[Hits, int]:
    """The most there is to hit, and how many blocks that takes."""
    hits, kept = Hits(), set[BlockHash]()
    for request in requests:
        prompt = request.blocks[: request.prompt_blocks]
        hits.note(request, next((at for at, key in enumerate(prompt) if key not in kept), len(prompt)))
        kept.update(request.blocks)
    return hits, len(kept)


def plain_lru(requests: Iterable[KvRequest], capacity: int) -> Hits:
    """The baseline: least recently used, without regard to what follows what."""
    hits, kept = Hits(), OrderedDict[BlockHash, None]()
    for request in requests:
        prompt = request.blocks[: request.prompt_blocks]
        hits.note(request, next((at for at, key in enumerate(prompt) if key not in kept), len(prompt)))
        for key in request.blocks:
            kept[key] = None
            kept.move_to_end(key)
        while len(kept) > capacity:
            kept.popitem(last=False)
    return hits


def one_tier(
    requests: Iterable[KvRequest], capacity: int, make_policy: MakePolicy, rules: EvictionRules | None = None
) -> Hits:
    hits, clock = Hits(), VirtualClock()
    index = TierIndex(capacity, make_policy, clock, rules)
    for request in requests:
        clock.advance(request.at - clock.now())
        hits.note(request, index.leading(request.blocks[: request.prompt_blocks]))
        _store(index, request.blocks, request.tenant)
    return hits


def _store(index: TierIndex, blocks: Sequence[BlockHash], tenant: TenantId) -> list[Victim]:
    held = blocks[: index.leading(blocks)]
    index.touch(held)
    index.pin(held)
    victims = index.make_room(len(blocks) - len(held), tenant)
    parent = held[-1] if held else None
    for key in blocks[len(held) :]:
        if index.add(key, parent, 1, tenant) is Added.NO_ROOM:
            break
        parent = key
    index.unpin(held)
    return victims


class TwoTiers:
    """NVMe writes end at once, up to so many blocks a second. filtered: what is not proven is not written
    to a full NVMe tier."""

    busy_blocks = 64

    def __init__(
        self,
        upper: TierIndex,
        lower: TierIndex,
        clock: VirtualClock,
        mode: WriteMode,
        *,
        filtered: bool,
        blocks_per_second: float = 1000.0,
    ) -> None:
        self.hits = Hits()
        self._upper, self._lower, self._clock = upper, lower, clock
        self._mode, self._filtered, self._rate = mode, filtered, blocks_per_second
        self._queued, self._queued_at = 0.0, 0.0
        self._admission = Admission(FrequencySketch(lower.capacity_bytes))

    def run(self, requests: Iterable[KvRequest]) -> Hits:
        for request in requests:
            self._clock.advance(request.at - self._clock.now())
            self._serve(request)
        return self.hits

    def _serve(self, request: KvRequest) -> None:
        blocks, asked = request.blocks, request.prompt_blocks
        upper = self._upper.leading(blocks[:asked])
        below = next(
            (at for at, key in enumerate(blocks[upper:asked]) if key not in self._lower), asked - upper
        )
        self.hits.note(request, upper, below)
        proven = self._admission.observe(blocks)
        self._lower.touch(blocks[: upper + below])
        self._upper.prove(blocks[:proven])
        victims = _store(self._upper, blocks, request.tenant)
        self._upper.prove(blocks[:proven])
        for victim in reversed(victims):  # a prompt's begin first
            self._leave(victim)
        self._write_through(blocks, request.tenant, proven)

    def _leave(self, victim: Victim) -> None:
        proven = victim.proven or not self._filtered
        if on_evicted(self._tier(), proven=proven, is_below=victim.key in self._lower) is WriteStep.WRITE:
            self._write(victim.key, victim.parent, victim.tenant)

    def _write_through(self, blocks: Sequence[BlockHash], tenant: TenantId, proven: int) -> None:
        parent: BlockHash | None = None
        for at, key in enumerate(blocks):
            is_proven = at < proven or not self._filtered
            missing = key in self._upper and key not in self._lower
            if missing and on_stored(self._mode, self._tier(), proven=is_proven) is WriteStep.WRITE:
                self._write(key, parent, tenant)
            parent = key

    def _write(self, key: BlockHash, parent: BlockHash | None, tenant: TenantId) -> None:
        before = self._lower.pin([parent] if parent else [])
        self._lower.make_room(1, tenant)
        self._lower.unpin(before)
        if self._lower.add(key, parent, 1, tenant) is Added.HELD:
            self._queued += 1
            self.hits.written += 1

    def _tier(self) -> LowerTier:
        now = self._clock.now()
        self._queued = max(0.0, self._queued - (now - self._queued_at) * self._rate)
        self._queued_at = now
        room = self._lower.used_bytes < self._lower.capacity_bytes
        return LowerTier(room, int(self._queued), self.busy_blocks)
