"""What the scheduler's half tells the ranks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vllm.v1.kv_offload.base import LoadStoreSpec

from llmserve.kvstore.blocks import Slot


@dataclass(frozen=True, slots=True)
class LocatedBlock:
    """A block in the store. manager: the name of the KV manager that has it. arena: the description of that
    one's memory. slots: of all ranks, in order."""

    manager: str
    arena: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class RankSlots:
    """Of one rank, in the memory of one KV manager. at: the places of the blocks among all of the order."""

    manager: str
    arena: str
    at: tuple[int, ...]
    slots: tuple[Slot, ...]


class StoreSlots(LoadStoreSpec):
    def __init__(self, blocks: Iterable[LocatedBlock] = ()) -> None:
        """blocks: in the order of the engine's blocks."""
        self.blocks = tuple(blocks)

    def __repr__(self) -> str:
        return f"StoreSlots({len(self.blocks)} blocks)"

    def of_rank(self, rank: int) -> Iterator[RankSlots]:
        """One for each memory."""
        homes: dict[tuple[str, str], list[int]] = {}
        for at, block in enumerate(self.blocks):
            homes.setdefault((block.manager, block.arena), []).append(at)
        for (manager, arena), places in homes.items():
            slots = tuple(self.blocks[at].slots[rank] for at in places)
            yield RankSlots(manager, arena, tuple(places), slots)
