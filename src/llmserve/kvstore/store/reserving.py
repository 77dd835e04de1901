"""Memory of DRAM for blocks that are to be filled."""

from collections.abc import Sequence

from llmserve.kvstore.blocks import PoolUser, Prompt, ReserveOutcome, Slot, StoredBlock
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.store.offload import Offload

_NO_ROOM = (ReserveOutcome.FULL, ReserveOutcome.TOO_LARGE)

Reserved = tuple[StoredBlock, tuple[Slot, ...]]


class SlotReservations:
    """lease_seconds: of each reservation."""

    def __init__(self, dram: DramTier, offload: Offload, lease_seconds: float) -> None:
        self._dram, self._offload, self._lease_seconds = dram, offload, lease_seconds

    def with_room_made(
        self, user: PoolUser, prompt: Prompt, blocks: Sequence[StoredBlock]
    ) -> tuple[list[Reserved], list[StoredBlock]]:
        """As `within_room`; others leave DRAM for it."""
        if blocks:
            self._offload.make_room(self._dram.charge(prompt.part_bytes) * len(blocks), prompt.tenant)
        return self.within_room(user, blocks)

    def within_room(
        self, user: PoolUser, blocks: Sequence[StoredBlock]
    ) -> tuple[list[Reserved], list[StoredBlock]]:
        """As many of the first as there is room for, and those for which there is none; those that another
        writes are left out."""
        ours: list[Reserved] = []
        for at, block in enumerate(blocks):
            outcome, slots = self._dram.reserve(user, block, self._lease_seconds)
            if outcome is ReserveOutcome.RESERVED:
                ours.append((block, slots))
            elif outcome in _NO_ROOM:
                return ours, list(blocks[at:])
        return ours, []
