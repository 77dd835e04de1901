"""Any order of calls and of time: the tier never contradicts itself, and ends empty."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve.core.ids import BlockHash, LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import PartFill, PoolUser, Slot
from llmserve.kvstore.dram.slabs import SlabMap
from tests.unit.kvstore.dram.conftest import block, make_pool

UNIT, UNITS = 64 << 10, 6
KEYS = st.sampled_from([BlockHash(bytes([n])) for n in range(5)])
USERS = st.sampled_from([PoolUser("x"), PoolUser("y")])
SECONDS = st.integers(1, 20)


class Tier(RuleBasedStateMachine):
    """memory: what honest writers and readers do to the arena. A slot's content is the generation that
    last began to write it; whoever reads under a current generation must find that of its block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(SlabMap(UNITS * UNIT, UNIT), np.zeros(UNITS * UNIT // 4096, np.int64))
        self.dram, self.clock = self.pool.dram, self.pool.clock
        self.memory: dict[int, int] = {}
        self.fills: list[tuple[BlockHash, int, Slot]] = []
        self.leases: list[tuple[LeaseId, list[Slot]]] = []

    @rule(
        key=KEYS,
        user=USERS,
        lengths=st.lists(st.integers(1, 2 * UNIT), min_size=1, max_size=3),
        seconds=SECONDS,
    )
    def reserve(self, key: BlockHash, user: PoolUser, lengths: list[int], seconds: int) -> None:
        _, slots = self.dram.reserve(user, block(key.decode(), *lengths), seconds)
        self.fills += [(key, part, slot) for part, slot in enumerate(slots)]

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), abort=st.booleans())
    def finish(self, data: st.DataObject, abort: bool) -> None:
        key, part, slot = fill = data.draw(st.sampled_from(self.fills))
        self.fills.remove(fill)
        if abort:
            self.dram.abort(key)
            return
        if self._current(slot):  # a writer looks before it writes
            self.memory[slot.offset] = slot.generation
        self.dram.commit(PartFill(key, part, slot.generation, slot.generation))

    @rule(keys=st.lists(KEYS, max_size=3), user=USERS, seconds=SECONDS)
    def pin(self, keys: list[BlockHash], user: PoolUser, seconds: int) -> None:
        lease_id, slots = self.dram.lease(user, [key for key in keys if self.dram.holds(key)], seconds)
        self.leases.append((lease_id, [slot for one in slots for slot in one]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), renew=st.booleans())
    def read(self, data: st.DataObject, renew: bool) -> None:
        lease_id, slots = data.draw(st.sampled_from(self.leases))
        read = {slot: self.memory[slot.offset] for slot in slots}
        current = [slot for slot in slots if self._current(slot)]
        assert all(read[slot] == slot.generation == slot.checksum for slot in current)
        answer = self.dram.renew(lease_id, 5) if renew else self.dram.release(lease_id)
        if answer is LeaseAnswer.VALID:
            assert current == slots, "a valid lease held its blocks"

    @rule(keys=st.lists(KEYS, max_size=3))
    def remove(self, keys: list[BlockHash]) -> None:
        for key in keys:
            self.dram.drop(key)

    @rule(user=USERS)
    def forget(self, user: PoolUser) -> None:
        self.dram.forget(user)

    @rule(seconds=SECONDS)
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def whole(self) -> None:
        self.dram.check_integrity()
        self.dram.index.check_integrity()

    def teardown(self) -> None:
        for _ in range(2):
            self.clock.advance(100)
            self.dram.settle()
        for number in range(5):
            self.dram.drop(BlockHash(bytes([number])))
        assert (self.pool.used_bytes, self.dram.open_leases, self.dram.orphan_slots) == (0, 0, 0)
        assert (len(self.dram.index), self.dram.reserved_blocks) == (0, 0)

    def _current(self, slot: Slot) -> bool:
        return self.pool.word(slot) == slot.generation


TestTier = Tier.TestCase
TestTier.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
