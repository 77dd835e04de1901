"""Any order of calls and of time: the table never contradicts itself, and ends empty."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import Fill, PoolUser, Slot, Want
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.table import PoolTable
from llmserve.kvstore.tiers.base import BlobKey

UNIT, UNITS = 64 << 10, 6
KEYS = st.sampled_from([BlobKey(bytes([n])) for n in range(5)])
USERS = st.sampled_from([PoolUser("x"), PoolUser("y")])
SECONDS = st.integers(1, 20)


class Pool(RuleBasedStateMachine):
    """memory: what honest writers and readers do to the arena. A slot's content is the generation that
    last began to write it; whoever reads under a current generation must find that of its block."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        words = np.zeros(UNITS * UNIT // 4096, np.int64)
        self.table = PoolTable(SlabMap(UNITS * UNIT, UNIT), words, self.clock, quarantine_seconds=30)
        self.memory: dict[int, int] = {}
        self.fills: list[tuple[BlobKey, Slot]] = []
        self.leases: list[tuple[LeaseId, list[Slot]]] = []

    @rule(key=KEYS, user=USERS, length=st.integers(1, 2 * UNIT), seconds=SECONDS)
    def reserve(self, key: BlobKey, user: PoolUser, length: int, seconds: int) -> None:
        [reserved] = self.table.reserve(user, [Want(key, length)], seconds)
        if reserved.slot.generation:
            self.fills.append((key, reserved.slot))

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), abort=st.booleans())
    def finish(self, data: st.DataObject, abort: bool) -> None:
        key, slot = data.draw(st.sampled_from(self.fills))
        self.fills.remove((key, slot))
        fill = Fill(key, slot.generation, slot.generation)
        if abort:
            self.table.abort([fill])
            return
        if self._current(slot):  # a writer looks before it writes
            self.memory[slot.offset] = slot.generation
        self.table.commit([fill])

    @rule(keys=st.lists(KEYS, max_size=3), user=USERS, seconds=SECONDS)
    def pin(self, keys: list[BlobKey], user: PoolUser, seconds: int) -> None:
        lease_id, slots = self.table.pin(user, keys, seconds)
        self.leases.append((lease_id, [slot for slot in slots if slot.generation]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), renew=st.booleans())
    def read(self, data: st.DataObject, renew: bool) -> None:
        lease_id, slots = data.draw(st.sampled_from(self.leases))
        read = {slot: self.memory[slot.offset] for slot in slots}
        current = [slot for slot in slots if self._current(slot)]
        assert all(read[slot] == slot.generation == slot.checksum for slot in current)
        answer = self.table.renew(lease_id, 5) if renew else self.table.release(lease_id)
        if answer is LeaseAnswer.VALID:
            assert current == slots, "a valid lease held its blocks"

    @rule(keys=st.lists(KEYS, max_size=3))
    def remove(self, keys: list[BlobKey]) -> None:
        self.table.remove(keys)

    @rule(user=USERS)
    def forget(self, user: PoolUser) -> None:
        self.table.forget(user)

    @rule(seconds=SECONDS)
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def whole(self) -> None:
        self.table.check_integrity()

    def teardown(self) -> None:
        for _ in range(2):
            self.clock.advance(100)
            self.table.settle()
        self.table.remove([BlobKey(bytes([n])) for n in range(5)])
        usage = self.table.usage()
        assert (usage.used_bytes, usage.held_bytes, usage.open_leases, usage.orphan_blocks) == (0, 0, 0, 0)
        assert self.table.next_expiry() is None

    def _current(self, slot: Slot) -> bool:
        return bool(self.table.generations[slot.offset // 4096] == slot.generation)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
