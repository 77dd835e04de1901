"""What one tier holds, and who goes when room is needed. Pure; moves no bytes.

The manager of a tier asks `make_room`, removes the victims from the medium, and then calls `add`. A block
that is being written is added first and pinned until its write is done; if that fails it is removed. A
block that is being read is pinned, too, and so is what is held of a prompt while room is made for the
rest of it, or that could take its own beginning. What is added counts at once: overlapping writes never
share room.

Always holds: no more bytes than the capacity; no block goes before those that follow it, while it is
pinned, or sooner than `hot_keep_seconds` after its last use; a tenant gives to others only while it
holds more than its hot set (and may end less than a block below it); no tenant holds more than its quota.
Among tenants, the one whose candidate was used least recently gives.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush
from math import inf

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.core.stats import Ages, EvictReason
from llmserve.kvstore.eviction.base import MakePolicy
from llmserve.kvstore.eviction.tenant import Gives, TenantBlocks
from llmserve.kvstore.eviction.tree import Node, PrefixTree

# Whose blocks are when an earlier process has stored them: they have no hot set.
NOBODY = TenantId("")


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """hot_keep_seconds: how long a block that was just used stays, whoever wants its room.
    tenant_hotset_bytes: what each tenant keeps whatever the others do.
    tenant_quota_bytes: what a tenant may hold at most; a tenant that is not named has no limit."""

    hot_keep_seconds: float = 0.0
    tenant_hotset_bytes: int = 0
    tenant_quota_bytes: Mapping[TenantId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Victim:
    """tenant: whose it was. proven: worth a write to the tier below."""

    key: BlockHash
    parent: BlockHash | None
    size_bytes: int
    tenant: TenantId
    proven: bool


class Added(StrEnum):
    HELD = "held"  # it is now
    PRESENT = "present"  # it was before
    NO_ROOM = "no_room"  # make_room did not find enough, or was not asked


class TierIndex:
    def __init__(
        self, capacity_bytes: int, make_policy: MakePolicy, clock: Clock, rules: EvictionRules | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._make_policy, self._clock = make_policy, clock
        self._rules = rules or EvictionRules()
        self._tree = PrefixTree()
        self._tenants: dict[TenantId, TenantBlocks] = {}  # of those that hold any
        self._kept: set[BlockHash] = set()
        self.evictions: Counter[EvictReason] = Counter()
        self.eviction_ages = Ages()

    def __len__(self) -> int:
        return len(self._tree)

    def __contains__(self, key: BlockHash) -> bool:
        return self._tree.find(key) is not None

    def __repr__(self) -> str:
        return f"<TierIndex blocks={len(self)} bytes={self.used_bytes}/{self.capacity_bytes}>"

    def tenant_bytes(self, tenant: TenantId) -> int:
        blocks = self._tenants.get(tenant)
        return blocks.used_bytes if blocks else 0

    def leading(self, keys: Sequence[BlockHash]) -> int:
        """How many of the first blocks are held, without a gap."""
        return next((at for at, key in enumerate(keys) if key not in self), len(keys))

    # -- room

    def make_room(self, need_bytes: int, tenant: TenantId) -> list[Victim]:
        """The blocks that are no longer held as of now, in order, so that `tenant` can add `need_bytes`.
        Nothing goes for what can never fit; otherwise there may be less room than wished for after it."""
        if need_bytes > min(self.capacity_bytes, self._quota(tenant)):
            return []
        over_quota = self.tenant_bytes(tenant) + need_bytes - self._quota(tenant)
        own = self._evict(over_quota, lambda giver: giver == tenant, EvictReason.QUOTA)
        excess = self.used_bytes + need_bytes - self.capacity_bytes

        def gives(giver: TenantId) -> bool:
            return giver == tenant or self._is_over_hotset(giver)

        return own + self._evict(excess, gives, EvictReason.ROOM)

    def add(self, key: BlockHash, parent: BlockHash | None, size_bytes: int, tenant: TenantId) -> Added:
        """parent: the block before it; None for the first of a prompt. Whoever adds is charged."""
        if key in self:
            return Added.PRESENT
        if not self._fits(size_bytes, tenant):
            return Added.NO_ROOM
        node = self._tree.add(key, parent, tenant)
        node.size_bytes, node.touched_at = size_bytes, self._clock.now()
        self._tenant(tenant).add(node)
        self.used_bytes += size_bytes
        return Added.HELD

    def remove(self, key: BlockHash) -> None:
        """It vanished or turned out corrupt, or its write failed. Ignored when it is not held."""
        if node := self._tree.find(key):
            self._forget(node, evicted=False)
            self._search_again()

    def adopt(self, key: BlockHash, parent: BlockHash | None, tenant: TenantId) -> None:
        """A block of nobody is this tenant's from now on, and follows its parent; unless that is over its
        quota, or the block is not held."""
        node = self._tree.find(key)
        if node is None or node.tenant != NOBODY or node.pins:
            return
        size_bytes = node.size_bytes
        if self.tenant_bytes(tenant) + size_bytes <= self._quota(tenant):
            self._forget(node, evicted=False)
            self.add(key, parent, size_bytes, tenant)

    # -- use

    def touch(self, keys: Sequence[BlockHash]) -> None:
        """These were used, in the order of the prompt. What is not held is ignored."""
        now = self._clock.now()
        for key in reversed(keys):  # a block counts as used after those that follow it
            if node := self._tree.find(key):
                node.touched_at = now
                self._tenants[node.tenant].touch(node)

    def prove(self, keys: Iterable[BlockHash]) -> None:
        """These are worth a write to the tier below (see admission.py). What is not held is ignored."""
        for key in keys:
            if node := self._tree.find(key):
                node.proven = True

    def is_proven(self, key: BlockHash) -> bool:
        node = self._tree.find(key)
        return node is not None and node.proven

    def followers(self, key: BlockHash) -> list[BlockHash]:
        """The held blocks right after a block."""
        return self._tree.followers(key)

    def pin(self, keys: Iterable[BlockHash]) -> list[BlockHash]:
        """Those of them that are held: they stay until unpinned as often as pinned."""
        held = [node for key in keys if (node := self._tree.find(key))]
        for node in held:
            node.pins += 1
        return [node.key for node in held]

    def unpin(self, keys: Iterable[BlockHash]) -> None:
        """Ends one pin of each block. Blocks that were removed meanwhile are ignored."""
        pinned = [node for key in keys if (node := self._tree.find(key)) and node.pins]
        for node in pinned:
            node.pins -= 1
        if pinned:
            self._search_again()

    # -- what an operator pins: it stays, and so does what is before it, until unpinned, removed or restarted

    def keep(self, keys: Iterable[BlockHash]) -> int:
        """Pins the held ones of these blocks, and returns how many were not pinned in this way before."""
        fresh = self.pin(key for key in dict.fromkeys(keys) if key not in self._kept)
        self._kept.update(fresh)
        return len(fresh)

    def unkeep(self, keys: Iterable[BlockHash]) -> int:
        """How many no longer are."""
        kept = self._kept.intersection(keys)
        self._kept -= kept
        self.unpin(kept)
        return len(kept)

    def find(self, key: BlockHash) -> Node | None:
        """None: not held."""
        return self._tree.find(key)

    def is_kept(self, key: BlockHash) -> bool:
        return key in self._kept

    def kept(self) -> list[Node]:
        """The blocks that an operator has pinned, in no order; as those of `held`."""
        return [node for key in self._kept if (node := self._tree.find(key))]

    def protected(self) -> set[BlockHash]:
        """The held blocks that an operator's pins keep: those named, and all before them."""
        found: set[BlockHash] = set()
        for key in self._kept:
            node = self._tree.find(key)
            while node and node.key not in found:
                found.add(node.key)
                node = node.parent
        return {key for key in found if key in self}

    def held(self) -> list[Node]:
        """As of now, in no order; one that goes later is no longer `held`."""
        return list(self._tree)

    def check_integrity(self) -> None:
        """Raises AssertionError when books and sums differ."""
        self._tree.check_integrity()
        assert all(node.pins for key in self._kept if (node := self._tree.find(key))), self
        assert all(key in self for key in self._kept), self
        sums = dict.fromkeys(self._tenants, 0)
        for node in self._tree:
            sums[node.tenant] += node.size_bytes
        assert sums == {tenant: blocks.used_bytes for tenant, blocks in self._tenants.items()}, self
        assert sum(sums.values()) == self.used_bytes <= self.capacity_bytes, self
        assert sum(len(blocks) for blocks in self._tenants.values()) == len(self), self
        assert all(used <= self._quota(tenant) for tenant, used in sums.items()), self
        for blocks in self._tenants.values():
            blocks.check_integrity()

    # -- parts

    def _quota(self, tenant: TenantId) -> float:
        return self._rules.tenant_quota_bytes.get(tenant, inf)

    def _fits(self, size_bytes: int, tenant: TenantId) -> bool:
        if self.tenant_bytes(tenant) + size_bytes > self._quota(tenant):
            return False
        return self.used_bytes + size_bytes <= self.capacity_bytes

    def _tenant(self, tenant: TenantId) -> TenantBlocks:
        if tenant not in self._tenants:
            self._tenants[tenant] = TenantBlocks(
                self._tree, self._make_policy(), self._rules.hot_keep_seconds
            )
        return self._tenants[tenant]

    def _evict(self, excess_bytes: float, gives: Gives, reason: EvictReason) -> list[Victim]:
        """From the tenant whose candidate was used least recently, until enough went or nobody gives."""
        victims: list[Victim] = []
        offers = self._offers(gives) if excess_bytes > 0 else []
        while offers and excess_bytes > 0:
            _, giver = heappop(offers)
            if not (node := self._candidate(giver, gives)):
                continue
            heappush(offers, (node.touched_at, giver))
            if offers[0][1] == giver:  # else another is older by now
                victims.append(_victim(node))
                excess_bytes -= node.size_bytes
                self.evictions[reason] += 1
                self.eviction_ages.observe(self._clock.now() - node.touched_at)
                self._forget(node, evicted=True)
        return victims

    def _offers(self, gives: Gives) -> list[tuple[float, TenantId]]:
        """When each tenant's candidate was used last, in order, which is a heap. These times only grow."""
        return sorted(
            (node.touched_at, giver) for giver in self._tenants if (node := self._candidate(giver, gives))
        )

    def _candidate(self, giver: TenantId, gives: Gives) -> Node | None:
        blocks = self._tenants.get(giver)  # none when it has given all that it held
        return blocks.candidate(gives, self._clock.now()) if blocks and gives(giver) else None

    def _is_over_hotset(self, tenant: TenantId) -> bool:
        return tenant == NOBODY or self.tenant_bytes(tenant) > self._rules.tenant_hotset_bytes

    def _search_again(self) -> None:
        for blocks in self._tenants.values():
            blocks.search_again_at = -inf

    def _forget(self, node: Node, *, evicted: bool) -> None:
        self.used_bytes -= node.size_bytes
        self._kept.discard(node.key)
        blocks = self._tenants[node.tenant]
        blocks.remove(node, evicted=evicted)
        if not len(blocks):
            del self._tenants[node.tenant]
        self._tree.remove(node)


def _victim(node: Node) -> Victim:
    parent = node.parent.key if node.parent else None
    return Victim(node.key, parent, node.size_bytes, node.tenant, node.proven)
