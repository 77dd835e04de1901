"""What the scheduler's half tells the ranks."""

from collections.abc import Sequence

from vllm.v1.kv_offload.base import LoadStoreSpec

from llmserve.kvstore.pool.slot import Slot


class StoreSlots(LoadStoreSpec):
    """arena: the description of the pool. slots: of each block, in order, those of all ranks."""

    def __init__(self, arena: str, slots: Sequence[tuple[Slot, ...]]) -> None:
        self.arena = arena
        self.slots = tuple(slots)

    def __repr__(self) -> str:
        return f"StoreSlots({len(self.slots)} blocks)"

    def of_rank(self, rank: int) -> list[Slot]:
        return [slots[rank] for slots in self.slots]
