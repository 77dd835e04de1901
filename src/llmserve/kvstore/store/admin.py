"""The requests of operators: list, pin and evict blocks.

A pin keeps a block in the tiers that have it now, and with it all blocks before it in its prompt, because
eviction never takes a block before those that follow it. A pin ends when it is undone, when the block is
found corrupt, and with this process. Nothing here removes a pinned block, or one that is being read or
written.

Listings walk indexes of a million blocks and let the loop run in between.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

from llmserve.core.adapters import is_digest
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest, BlockHash, TenantId
from llmserve.core.stats import EvictReason
from llmserve.kvstore.blocks import adapter_label, label_in
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction.tree import Node
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.store.store import BlockStore

AnyTier = DramTier | LowerStore

MAX_LISTED_BLOCKS = 10_000
_WALKED_AT_ONCE = 10_000
_DROPPED_AT_ONCE = 256
_DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class BlockFilter:
    """Matches blocks for which all conditions hold. tier: name; empty for all. hash_prefix: in
    hexadecimal. label: of the adapter that they were computed with; empty for any. pinned: only those that an
    operator has pinned, without the blocks before them."""

    tier: str = ""
    tenant: TenantId | None = None
    hash_prefix: str = ""
    label: bytes = b""
    pinned: bool = False

    def matches(self, node: Node) -> bool:
        return (
            node.held
            and (self.tenant is None or node.tenant == self.tenant)
            and (not self.hash_prefix or node.key.hex().startswith(self.hash_prefix))
            and (not self.label or label_in(node.key) == self.label)
        )


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """pinned: an operator has pinned it or a block after it. in_use: it is being read or written."""

    tier: str
    size_bytes: int
    idle_seconds: float
    pinned: bool
    in_use: bool


@dataclass(slots=True)
class BlockListing:
    key: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    places: list[BlockPlace] = field(default_factory=list)

    @property
    def idle_seconds(self) -> float:
        return min(place.idle_seconds for place in self.places)


@dataclass(frozen=True, slots=True)
class PinResult:
    """changed_blocks: counted once for each tier. pinned_blocks: pinned now, with the blocks before them."""

    changed_blocks: int
    pinned_blocks: int


@dataclass(slots=True)
class EvictResult:
    """Blocks are counted once for each tier. pinned_blocks, busy_blocks: those that stay, by reason."""

    blocks: int = 0
    size_bytes: int = 0
    pinned_blocks: int = 0
    busy_blocks: int = 0


@dataclass(frozen=True, slots=True)
class DropResult:
    """Blocks are counted once for each tier. left_blocks: those that are still there, or on their way."""

    blocks: int
    size_bytes: int
    left_blocks: int


class StoreAdmin:
    """One event loop. Errors of all calls: NotFound for a tier or a block that is not there,
    InvalidRequest for a hash that is none or that several blocks begin with."""

    def __init__(self, store: BlockStore, clock: Clock) -> None:
        self.store = store
        self._clock = clock

    def tiers(self, name: str = "") -> list[AnyTier]:
        """All tiers, the fastest first, or the one of this name."""
        tiers: list[AnyTier] = [self.store.dram, *self.store.lower]
        found = [tier for tier in tiers if name in ("", tier.name)]
        if not found:
            known = ", ".join(tier.name for tier in tiers)
            raise NotFound(f"no storage class is called '{name}'; there are: {known}")
        return found

    # -- looking

    async def list_blocks(self, wanted: BlockFilter, limit: int) -> tuple[list[BlockListing], int]:
        """At most `limit` blocks, the last used first, and the number that match in all."""
        if not 1 <= limit <= MAX_LISTED_BLOCKS:
            raise InvalidRequest(f"limit: must be 1 to {MAX_LISTED_BLOCKS}, got {limit}")
        last_used: dict[BlockHash, float] = {}
        tiers = self.tiers(wanted.tier)
        for tier in tiers:
            for node in await self.select(tier, wanted):
                last_used[node.key] = max(node.touched_at, last_used.get(node.key, node.touched_at))
        shown = nlargest(limit, last_used, key=last_used.__getitem__)
        return list(self._listed(tiers, shown)), len(last_used)

    async def select(self, tier: AnyTier, wanted: BlockFilter) -> list[Node]:
        """The blocks of one tier that match."""
        nodes, found = tier.index.kept() if wanted.pinned else tier.index.held(), []
        _check_hash(wanted.hash_prefix)
        for start in range(0, len(nodes), _WALKED_AT_ONCE):
            found += [node for node in nodes[start : start + _WALKED_AT_ONCE] if wanted.matches(node)]
            await asyncio.sleep(0)
        return found

    # -- changing

    async def pin(self, wanted: BlockFilter, *, unpin: bool = False) -> PinResult:
        """Pins the blocks that match now; later ones are not pinned."""
        chosen = await self._chosen(wanted)
        changed = 0
        for tier, nodes in chosen:
            keys = [node.key for node in nodes]
            changed += tier.index.unkeep(keys) if unpin else tier.index.keep(keys)
        return PinResult(changed, sum(len(tier.index.protected()) for tier, _ in chosen))

    async def evict(self, wanted: BlockFilter) -> EvictResult:
        """Evicts the blocks that match, and those that follow them: they could not be used any more."""
        await self._let_writes_end()
        done = EvictResult()
        for tier, nodes in await self._chosen(wanted):
            await self._evict(tier, list(parents_first(_with_followers(nodes))), done)
        return done

    async def drop_adapter(self, adapter: AdapterDigest) -> DropResult:
        """Evicts the blocks that were computed with this version of an adapter, also those that an operator
        has pinned. No later process finds them. What is being read or written stays, so ask again until
        nothing is left. Errors: InvalidRequest for what is no digest; Unavailable while a medium does not
        answer, for which the same holds."""
        wanted = BlockFilter(label=_label(adapter))
        await self.pin(wanted, unpin=True)
        done = await self.evict(wanted)
        for tier in self.store.lower:
            await tier.settle_removals()
        return DropResult(done.blocks, done.size_bytes, await self._left(wanted))

    # -- parts

    def _listed(self, tiers: Sequence[AnyTier], keys: Sequence[BlockHash]) -> Iterator[BlockListing]:
        protected = {tier.name: tier.index.protected() for tier in tiers}
        for key in keys:
            held = [(tier, node) for tier in tiers if (node := tier.index.find(key))]
            if not held:
                continue  # gone since it was selected
            first = held[0][1]
            listed = BlockListing(key, first.parent.key if first.parent else None, first.tenant)
            for tier, node in held:
                idle = self._clock.now() - node.touched_at
                in_use = self._is_busy(tier, node)
                listed.places.append(
                    BlockPlace(tier.name, node.size_bytes, idle, key in protected[tier.name], in_use)
                )
            yield listed

    async def _chosen(self, wanted: BlockFilter) -> list[tuple[AnyTier, list[Node]]]:
        """The blocks that match, by tier. A hash prefix must mean one block."""
        chosen = [(tier, await self.select(tier, wanted)) for tier in self.tiers(wanted.tier)]
        keys = {node.key for _, nodes in chosen for node in nodes} if wanted.hash_prefix else set()
        if wanted.hash_prefix and not keys:
            raise NotFound(f"no block is stored whose hash begins with {wanted.hash_prefix}")
        if len(keys) > 1:
            raise InvalidRequest(
                f"{len(keys)} blocks have a hash that begins with {wanted.hash_prefix}: give more of it"
            )
        return chosen

    async def _left(self, wanted: BlockFilter) -> int:
        held = [await self.select(tier, wanted) for tier in self.tiers()]
        going_down = [key for tier in self.store.lower for key in tier.writing()]
        return sum(map(len, held)) + sum(label_in(key) == wanted.label for key in going_down)

    async def _let_writes_end(self) -> None:
        """Waits a little: a block on its way down would appear after the eviction. Under load some stay
        busy."""
        drained = [asyncio.ensure_future(tier.drained()) for tier in self.store.lower]
        if drained:
            _, late = await asyncio.wait(drained, timeout=_DRAIN_SECONDS)
            for one in late:
                one.cancel()

    async def _evict(self, tier: AnyTier, nodes: list[Node], done: EvictResult) -> None:
        protected = tier.index.protected()
        for start in range(len(nodes), 0, -_DROPPED_AT_ONCE):
            going: set[BlockHash] = set()
            for node in reversed(nodes[max(0, start - _DROPPED_AT_ONCE) : start]):
                if not node.held:
                    continue
                if node.key in protected or tier.index.is_kept(node.key):
                    done.pinned_blocks += 1
                elif self._is_busy(tier, node) or not going.issuperset(tier.index.followers(node.key)):
                    done.busy_blocks += 1
                else:
                    done.blocks += 1
                    done.size_bytes += node.size_bytes
                    going.add(node.key)
            await drop(tier, list(going), EvictReason.ASKED)

    def _is_busy(self, tier: AnyTier, node: Node) -> bool:
        pins = node.pins - tier.index.is_kept(node.key)
        return pins > 0 or any(lower.is_writing(node.key) for lower in self.store.lower)


async def drop(tier: AnyTier, keys: Sequence[BlockHash], reason: EvictReason) -> None:
    tier.index.evictions[reason] += sum(key in tier.index for key in keys)
    if isinstance(tier, LowerStore):
        await tier.drop(keys)
        return
    for key in keys:
        tier.drop(key)
    await asyncio.sleep(0)


def parents_first(nodes: Iterable[Node]) -> Iterator[Node]:
    """The same nodes, each after those before it in its prompt."""
    chosen = dict.fromkeys(nodes)
    seen: set[Node] = set()
    for node in chosen:
        branch: list[Node] = []
        at: Node | None = node
        while at and at not in seen:
            seen.add(at)
            branch.append(at)
            at = at.parent
        yield from (one for one in reversed(branch) if one in chosen)


def _with_followers(nodes: Iterable[Node]) -> Iterator[Node]:
    """The held nodes and those after them, each once."""
    seen: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(node.children())
        if node.held:
            yield node


def _label(adapter: AdapterDigest) -> bytes:
    """Errors: InvalidRequest."""
    if not is_digest(adapter):
        raise InvalidRequest(f"a digest has 64 hexadecimal digits (0-9, a-f), got '{adapter}'")
    return adapter_label(adapter)


def _check_hash(prefix: str) -> None:
    if not all(digit in "0123456789abcdef" for digit in prefix):
        raise InvalidRequest(f"a block hash is written in hexadecimal (0-9, a-f), got '{prefix}'")
