"""The links of one engine to all KV managers, as one.

A prompt's question goes out as one for each shard of it (`kvstore.sharding`), all at once, and their answers
come back as one. A KV manager that is away makes its shards a miss; the others are asked and answer as ever.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Protocol

from llmserve.core.ids import BlockHash
from llmserve.engines.store.link import StoreAnswer, StoreQuery
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.sharding import Shard, Sharding
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb


@dataclass(frozen=True, slots=True)
class LocatedBlock:
    """A block in the store. manager: name of its KV manager. arena: description of that manager's memory.
    slots: one for each rank."""

    manager: str
    arena: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class StoreLease:
    """arena: as of the blocks that it holds."""

    manager: str
    arena: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class ShardAnswer:
    shard: Shard
    answer: StoreAnswer


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """arenas: memory of each KV manager that was asked; empty for one that did not answer. loads, stores: by
    the block's index in the prompt. leases: those of the loads. usable_until: see StoreAnswer."""

    ask: StoreQuery
    arenas: Mapping[str, str] = field(default_factory=dict)
    loads: Mapping[int, LocatedBlock] = field(default_factory=dict)
    leases: Sequence[StoreLease] = ()
    stores: Mapping[int, LocatedBlock] = field(default_factory=dict)
    usable_until: float = float("inf")


class OneLink(Protocol):
    """See StoreLink."""

    def prepare(self, ask: StoreQuery) -> None: ...
    def take_answers(self) -> list[StoreAnswer]: ...
    def settle(self, arena: str, **changes: Any) -> None: ...
    def close(self) -> None: ...


def manager_name(index: int) -> str:
    """Name by which blocks find their owner. It is the same after a restart, when the address is another."""
    return f"kvmanager-{index}"


@dataclass(slots=True)
class _PendingPrompt:
    """A prompt whose shards have not all been answered. given: by the start of the shard."""

    ask: StoreQuery
    shards: int
    given: dict[int, ShardAnswer] = field(default_factory=dict)


class StoreLinks:
    """One thread, the scheduler's. `close` is idempotent."""

    def __init__(self, managers: int, make_link: Callable[[int, Callable[[], None]], OneLink]) -> None:
        """make_link: makes the link to the manager of this number; the second argument is its `notify`."""
        names = list(map(manager_name, range(managers)))
        self._answered = Event()
        self._links = {name: make_link(at, self._answered.set) for at, name in enumerate(names)}
        self._sharding = Sharding(dict.fromkeys(names, 1.0))
        # By the identity of the shard's question.
        self._open: dict[int, tuple[_PendingPrompt, Shard, StoreQuery]] = {}

    def prepare(self, ask: StoreQuery) -> None:
        """Asks about at least one block that the device does not have. The answer comes with `take_answers`,
        when all shards are answered."""
        questions = split(self._sharding, ask)
        pending = _PendingPrompt(ask, len(questions))
        for shard, question in questions:
            self._open[id(question)] = (pending, shard, question)
            self._links[shard.manager].prepare(question)

    def take_answers(self, wait_seconds: float = 0.0) -> list[PromptAnswer]:
        """wait_seconds: longest wait if no answer is there."""
        self._answered.clear()
        answers = self._take()
        if not answers and wait_seconds and self._answered.wait(wait_seconds):
            answers = self._take()
        return answers

    def settle(self, manager: str, arena: str, **changes: Any) -> None:
        """See StoreLink."""
        self._links[manager].settle(arena, **changes)

    def close(self) -> None:
        for link in self._links.values():
            link.close()

    def _take(self) -> list[PromptAnswer]:
        whole: list[_PendingPrompt] = []
        for answer in [one for link in self._links.values() for one in link.take_answers()]:
            pending, shard, _ = self._open.pop(id(answer.ask))
            pending.given[shard.start] = ShardAnswer(shard, answer)
            if len(pending.given) == pending.shards:
                whole.append(pending)
        return list(map(self._merged, whole))

    def _merged(self, pending: _PendingPrompt) -> PromptAnswer:
        answer, unused = merged(pending.ask, [pending.given[start] for start in sorted(pending.given)])
        for lease in unused:
            self.settle(lease.manager, lease.arena, releases=[lease.lease_id])
        return answer


def split(sharding: Sharding, ask: StoreQuery) -> list[tuple[Shard, StoreQuery]]:
    """The questions about a prompt, in its order. The first question about it also names the blocks that the
    device has, so that their KV managers keep the beginning as long as the rest."""
    shards = sharding.shards(list(map(BlockHash, ask.block_hashes)))
    return [(shard, _question(shard, ask)) for shard in shards if ask.load or shard.stop > ask.have_blocks]


def _question(shard: Shard, ask: StoreQuery) -> StoreQuery:
    have = min(max(ask.have_blocks - shard.start, 0), shard.stop - shard.start)
    return replace(ask, block_hashes=ask.block_hashes[shard.start : shard.stop], have_blocks=have)


def merged(ask: StoreQuery, answers: Sequence[ShardAnswer]) -> tuple[PromptAnswer, list[StoreLease]]:
    """answers: to all shards, in the prompt's order. Loads end at the first gap; the second value are the
    leases of the blocks after it, to be released. Blocks to be stored there stay."""
    end = _end_of_loads(answers)
    leases: tuple[list[StoreLease], list[StoreLease]] = ([], [])  # used and not
    loads: dict[int, LocatedBlock] = {}
    stores: dict[int, LocatedBlock] = {}
    for one in answers:
        shard, prepared = one.shard, one.answer.prepared
        loads |= _located(one, prepared.loads)
        stores |= _located(one, prepared.stores)
        if prepared.lease_id:
            lease = StoreLease(shard.manager, one.answer.arena, prepared.lease_id)
            leases[shard.start >= end].append(lease)
    return PromptAnswer(
        ask,
        arenas={one.shard.manager: one.answer.arena for one in answers},
        loads={at: block for at, block in loads.items() if at < end},
        leases=leases[False],
        stores=stores,
        usable_until=min(one.answer.usable_until for one in answers),
    ), leases[True]


def _end_of_loads(answers: Sequence[ShardAnswer]) -> int:
    """Index after the last block before the first gap; 0 without loads. The device's blocks are no gap."""
    end = 0
    for one in answers:
        loads = {block.index for block in one.answer.prepared.loads}
        for at in range(one.answer.ask.have_blocks, one.shard.stop - one.shard.start):
            if at not in loads:
                return end
            end = one.shard.start + at + 1
    return end


def _located(one: ShardAnswer, blocks: Sequence[pb.StoreBlock]) -> dict[int, LocatedBlock]:
    manager, arena = one.shard.manager, one.answer.arena
    return {one.shard.start + block.index: LocatedBlock(manager, arena, _slots(block)) for block in blocks}


def _slots(block: pb.StoreBlock) -> tuple[Slot, ...]:
    return tuple(Slot(s.offset, s.length_bytes, s.generation, s.checksum) for s in block.slots)
