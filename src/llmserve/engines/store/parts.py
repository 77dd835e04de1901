"""One question for a prompt as one for each part of it, and their answers as one. Pure.

The parts are those of `kvstore.sharding`: blocks in a row that one KV manager keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmserve.core.ids import BlockHash
from llmserve.engines.store.link import StoreAnswer, StoreQuery
from llmserve.engines.store.words import LocatedBlock
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.sharding import Shard, ShardAnswer, Sharding, merge
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb


@dataclass(frozen=True, slots=True)
class StoreLease:
    manager: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class PartAnswer:
    part: Shard
    answer: StoreAnswer


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """arenas: of the KV managers that were asked, their memory; empty of one that did not answer. loads,
    stores: by the block's index in the prompt. leases: of the loads. usable_until: see StoreAnswer."""

    ask: StoreQuery
    arenas: Mapping[str, str] = field(default_factory=dict)
    loads: Mapping[int, LocatedBlock] = field(default_factory=dict)
    leases: Sequence[StoreLease] = ()
    stores: Mapping[int, LocatedBlock] = field(default_factory=dict)
    usable_until: float = float("inf")


def split(sharding: Sharding, ask: StoreQuery) -> list[tuple[Shard, StoreQuery]]:
    """In the prompt's order. When a prompt is asked about for the first time, what the device has of it is
    told, too: its KV managers keep the beginning as long as they keep the rest."""
    parts = sharding.shards(list(map(BlockHash, ask.block_hashes)))
    return [(part, _of_part(part, ask)) for part in parts if ask.load or part.stop > ask.have_blocks]


def _of_part(part: Shard, ask: StoreQuery) -> StoreQuery:
    have = min(max(ask.have_blocks - part.start, 0), part.stop - part.start)
    return replace(ask, block_hashes=ask.block_hashes[part.start : part.stop], have_blocks=have)


def merged(ask: StoreQuery, answers: Sequence[PartAnswer]) -> tuple[PromptAnswer, list[StoreLease]]:
    """answers: to all parts, in the prompt's order. What may be loaded ends at the first gap. The second
    value are the leases of what comes after it, to be released; what is to be stored there stays."""
    found = merge([_held(one) for one in answers])
    leases: tuple[list[StoreLease], list[StoreLease]] = ([], [])  # used and not
    loads: dict[int, LocatedBlock] = {}
    stores: dict[int, LocatedBlock] = {}
    for one in answers:
        part, prepared = one.part, one.answer.prepared
        loads |= _placed(one, prepared.loads)
        stores |= _placed(one, prepared.stores)
        if prepared.lease_id:
            leases[part.start >= found.blocks].append(StoreLease(part.manager, prepared.lease_id))
    return PromptAnswer(
        ask,
        arenas={one.part.manager: one.answer.arena for one in answers},
        loads={at: block for at, block in loads.items() if at < found.blocks},
        leases=leases[False],
        stores=stores,
        usable_until=min(one.answer.usable_until for one in answers),
    ), leases[True]


def _held(one: PartAnswer) -> ShardAnswer:
    """Of the blocks that the device does not have."""
    part, ask = one.part, one.answer.ask
    wanted = range(ask.have_blocks, len(ask.block_hashes))
    loads = {block.index for block in one.answer.prepared.loads}
    asked = Shard(part.manager, part.start + ask.have_blocks, part.stop)
    return ShardAnswer(asked, [at in loads for at in wanted] if one.answer.arena else None)


def _placed(one: PartAnswer, blocks: Sequence[pb.StoreBlock]) -> dict[int, LocatedBlock]:
    manager, arena = one.part.manager, one.answer.arena
    return {one.part.start + block.index: LocatedBlock(manager, arena, _slots(block)) for block in blocks}


def _slots(block: pb.StoreBlock) -> tuple[Slot, ...]:
    return tuple(Slot(s.offset, s.length_bytes, s.generation, s.checksum) for s in block.slots)
