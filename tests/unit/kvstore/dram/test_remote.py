"""Copies over transports: every byte in its place, what must not be trusted, and another way."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client import remote as remote_module
from llmserve.kvstore.dram.client.copier import Copied, CopyOutcome
from llmserve.kvstore.dram.client.remote import RemotePool
from llmserve.kvstore.dram.serving import PoolServer, ServedRoute
from llmserve.kvstore.dram.shape import ArenaDescription
from llmserve.transfer.base import Region, Spans, Transport
from llmserve.transfer.engine import pair as pair_module
from llmserve.transfer.engine.choice import FIRST_PAUSE_SECONDS, TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.select import with_faults
from llmserve.transfer.shm import ShmTransport
from llmserve.transfer.tcp import TcpTransport
from tests.unit.kvstore.dram.worker_memory import BLOCK_BYTES, BLOCKS, LAYERS, PIECE_BYTES, WorkerMemory

STEP = -(-BLOCK_BYTES // 4096) * 4096


@dataclass
class Ends:
    """Both in this process, which no transport knows: shm, too, goes through the kernel."""

    arena: Arena
    server: PoolServer
    memory: WorkerMemory
    pools: list[RemotePool]

    def slot(self, number: int) -> Slot:
        offset = number * STEP
        self.arena.generations[offset // 4096] = number + 1
        return Slot(offset, BLOCK_BYTES, number + 1)

    def described(self) -> ArenaDescription:
        return ArenaDescription.from_text(self.arena.description(self.server.open()))

    def pool(self, *transports: Transport) -> RemotePool:
        pool = RemotePool(
            "kvmanager-0", self.described(), self.memory.regions, transports or [TcpTransport()]
        )
        self.pools.append(pool)
        return pool

    def held(self, slot: Slot) -> bytes:
        return bytes(self.arena.view(slot.offset, slot.length_bytes))

    def noted(self, slots: Sequence[Slot]) -> list[int]:
        return [self.arena.checksum(slot) for slot in slots]


@pytest.fixture(params=["even", "backwards", "uneven"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    arena = Arena("remote", 2 << 20)
    ends = Ends(arena, PoolServer(arena.regions, (), "127.0.0.1"), WorkerMemory(1, request.param), [])
    yield ends
    for pool in ends.pools:
        pool.close()
        pool.close()
    ends.server.close()
    ends.server.close()
    arena.close()


def faulty_shm(faults: str) -> Transport:
    return with_faults(ShmTransport(), f"shm: {faults}")


def test_blocks_go_in_and_out_again(ends: Ends) -> None:
    pool, slots = ends.pool(), [ends.slot(0), ends.slot(2)]
    stored = pool.store(slots, ends.memory.spans(3, 0))
    assert stored == [Copied(CopyOutcome.DONE, ends.memory.checksum(number)) for number in (3, 0)]
    assert ends.noted(slots) == [one.checksum for one in stored]
    assert [ends.held(slot) for slot in slots] == [ends.memory.block(3), ends.memory.block(0)]
    kept = [ends.memory.block(number) for number in range(BLOCKS)]
    leased = [replace(slot, checksum=one.checksum) for slot, one in zip(slots, stored, strict=True)]
    assert pool.load(leased, ends.memory.spans(1, 2)) == stored
    after = [ends.memory.block(number) for number in range(BLOCKS)]
    assert after == [kept[0], kept[3], kept[0], kept[3]], "and nothing else was touched"


def test_no_flipped_byte_is_served(ends: Ends) -> None:
    pool, slot = ends.pool(), ends.slot(1)
    [stored] = pool.store([slot], ends.memory.spans(0))
    leased = replace(slot, checksum=stored.checksum)
    for place in (0, PIECE_BYTES, BLOCK_BYTES - 1):
        ends.arena.view(slot.offset + place, 1)[0] ^= 0x10
        assert pool.load([leased], ends.memory.spans(1))[0].outcome is CopyOutcome.CORRUPT
        ends.arena.view(slot.offset + place, 1)[0] ^= 0x10
    assert pool.load([leased], ends.memory.spans(1))[0].outcome is CopyOutcome.DONE


def test_slots_that_were_given_to_others_are_moved(ends: Ends) -> None:
    pool, slots = ends.pool(), [ends.slot(0), ends.slot(1), ends.slot(2)]
    stored = pool.store(slots, ends.memory.spans(0, 1, 2))
    before, noted = ends.held(slots[1]), ends.noted(slots)
    ends.arena.generations[slots[1].page] = 99
    outcomes = [CopyOutcome.DONE, CopyOutcome.MOVED, CopyOutcome.DONE]
    assert [one.outcome for one in pool.store(slots, ends.memory.spans(3, 3, 3))] == outcomes
    assert (ends.held(slots[1]), ends.noted(slots)[1]) == (before, noted[1]), "a late writer writes nothing"
    assert ends.held(slots[2]) == ends.memory.block(3)
    leased = [replace(slot, checksum=ends.memory.checksum(3)) for slot in slots]
    assert [one.outcome for one in pool.load(leased, ends.memory.spans(0, 1, 2))] == outcomes
    ends.arena.generations[:] = 0
    assert pool.store(slots, ends.memory.spans(0, 1, 2)) == [Copied(CopyOutcome.MOVED)] * 3
    assert stored[0].checksum


class Hooked:
    """A transport that does something else after it has begun to copy."""

    def __init__(self, inner: Transport, **hooks: Callable[[], None]) -> None:
        self._inner, self._hooks = inner, hooks

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            result = getattr(self._inner, name)(*arguments)
            self._hooks.get(name, lambda: None)()
            return result

        return call if callable(getattr(self._inner, name)) else getattr(self._inner, name)


def test_a_slot_that_is_lost_under_the_copy_is_moved_and_not_vouched_for(ends: Ends) -> None:
    slot = ends.slot(1)

    def lose() -> None:
        ends.arena.generations[slot.page] = 0

    pool = ends.pool(Hooked(TcpTransport(), write=lose))
    assert pool.store([slot], ends.memory.spans(0)) == [Copied(CopyOutcome.MOVED)]
    assert ends.noted([slot]) == [0]


@pytest.mark.parametrize("ends", ["even"], indirect=True)
@pytest.mark.parametrize(
    "faults",
    ["fail_submit=1/1", "fail_poll=1/1", "corrupt=1/1", "drop_peer=1/1 after 2", "drop_peer=1/1 after 8"],
)
def test_what_one_transport_does_wrong_the_next_one_does(ends: Ends, faults: str) -> None:
    slot, checksum = ends.slot(1), ends.memory.checksum(0)
    pool = ends.pool(faulty_shm(faults), TcpTransport())
    assert pool.store([slot], ends.memory.spans(0)) == [Copied(CopyOutcome.DONE, checksum)]
    assert (ends.held(slot), ends.noted([slot])) == (ends.memory.block(0), [checksum])
    leased = replace(slot, checksum=checksum)
    assert pool.load([leased], ends.memory.spans(2)) == [Copied(CopyOutcome.DONE, checksum)]
    assert ends.memory.block(2) == ends.memory.block(0)


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_bytes_that_change_on_the_way_are_read_over_another(ends: Ends) -> None:
    """shm's twelfth copy is spoiled: after those of a probe, and of word, block, word and checksum."""
    slot, checksum = ends.slot(1), ends.memory.checksum(0)
    pool = ends.pool(faulty_shm("corrupt=1/1 after 11 at most 1"), TcpTransport())
    assert pool.store([slot], ends.memory.spans(0)) == [Copied(CopyOutcome.DONE, checksum)]
    leased = replace(slot, checksum=checksum)
    assert pool.load([leased], ends.memory.spans(2)) == [Copied(CopyOutcome.DONE, checksum)]
    assert ends.memory.block(2) == ends.memory.block(0)
    ends.arena.view(slot.offset, 1)[0] ^= 1
    assert pool.load([leased], ends.memory.spans(2))[0].outcome is CopyOutcome.CORRUPT, "whichever reads it"


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_a_transport_that_failed_is_tried_again_after_a_pause(ends: Ends) -> None:
    slot, clock, shm = ends.slot(1), VirtualClock(), faulty_shm("fail_submit=1/1 at most 1")
    pool = RemotePool("kvmanager-0", ends.described(), ends.memory.regions, [shm], clock=clock)
    ends.pools.append(pool)
    with pytest.raises(TransferError, match="no transport reaches it: shm: "):
        pool.store([slot], ends.memory.spans(0))
    with pytest.raises(TransferError, match="no transport reaches it: shm: "):
        pool.store([slot], ends.memory.spans(0))
    clock.advance(FIRST_PAUSE_SECONDS)
    assert pool.store([slot], ends.memory.spans(0))[0].outcome is CopyOutcome.DONE


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_its_pair_is_in_the_matrix_while_it_is_open(ends: Ends) -> None:
    shared, slot = SharedTransfers(), ends.slot(1)
    matrix = shared.matrix
    transports = [faulty_shm("fail_poll=1/1 after 8 at most 1"), TcpTransport()]
    pool = RemotePool("kvmanager-0", ends.described(), ends.memory.regions, transports, shared=shared)
    ends.pools.append(pool)
    assert {(row.peer, row.transport) for row in matrix.rows()} == {
        ("kvmanager-0", "shm"),
        ("kvmanager-0", "tcp"),
    }
    pool.store([slot], ends.memory.spans(0))
    shm, tcp = matrix.rows()
    assert (shm.breaker, shm.failures, shm.chosen) == ("open", 1, False)
    assert "fail_poll" in shm.reason
    assert (tcp.breaker, tcp.chosen) == ("closed", True)
    assert tcp.bytes >= BLOCK_BYTES, "the block, and words of its slot"
    assert tcp.bytes_per_second > 0, "it was probed"
    pool.close()
    assert matrix.rows() == []


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_only_the_described_memory_is_the_pool(ends: Ends) -> None:
    """Who listens now where it was described proves with the pattern of a probe that it is the same."""
    slot, described = ends.slot(0), ends.described()
    route = ServedRoute.from_text(described.transports["tcp"])
    other = ServedRoute(route.description, replace(route.probe, small_digest="0" * 16))
    described = replace(described, transports={"tcp": other.to_text()})
    pool = RemotePool("kvmanager-0", described, ends.memory.regions, [TcpTransport()])
    ends.pools.append(pool)
    with pytest.raises(TransferError, match=r"tcp: probe: .* other bytes than"):
        pool.store([slot], ends.memory.spans(0))
    assert ends.held(slot) == bytes(BLOCK_BYTES)


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_without_a_common_transport_there_is_no_pool(ends: Ends) -> None:
    described, transport = replace(ends.described(), transports={"nixl": "AAAA"}), TcpTransport()
    with pytest.raises(TransferError, match="no transport in common"):
        RemotePool("kvmanager-0", described, ends.memory.regions, [transport])
    with pytest.raises(TransferError, match="closed"):
        transport.register([])


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_an_owner_that_has_closed_is_an_error(ends: Ends) -> None:
    slot, pool = ends.slot(0), ends.pool()
    pool.store([slot], ends.memory.spans(0))
    ends.server.close()
    for _ in range(2):
        with pytest.raises(TransferError, match="no transport reaches it: tcp: "):
            pool.load([slot], ends.memory.spans(1))


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_slots_and_pieces_must_be_in_memory_and_fit(ends: Ends) -> None:
    pool, slot = ends.pool(), ends.slot(0)
    whole = ends.memory.spans(0)
    beyond = Spans(whole.regions + LAYERS, whole.offsets, whole.lengths)
    for slots, spans, reason in (
        ([slot], whole.cut(slice(0, -1)), "do not make up"),
        ([slot], beyond, "outside registered memory"),
        ([replace(slot, offset=(2 << 20) - 4096)], whole, "no such slot"),
        ([replace(slot, offset=-4096)], whole, "no such slot"),
    ):
        with pytest.raises(TransferError, match=reason):
            pool.store(slots, spans)
    assert ends.held(slot) == bytes(BLOCK_BYTES)
    assert pool.store([slot], whole)[0].outcome is CopyOutcome.DONE, "and no transport is out of use for it"


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_words_of_many_slots_go_in_several_batches(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "_WORDS", 6)
    memory = np.zeros(14 * 4096, np.uint8)
    region = Region(memory.ctypes.data, memory.nbytes)
    pool = RemotePool("kvmanager-0", ends.described(), [region], [TcpTransport()])
    ends.pools.append(pool)
    memory[:] = np.random.default_rng(5).integers(0, 256, memory.nbytes, np.uint8)
    kept, count = memory.tobytes(), 14
    slots = [Slot(page * 4096, 4096, page + 7) for page in range(count)]
    ends.arena.generations[:count] = [slot.generation for slot in slots]
    spans = Spans(np.zeros(count, np.int64), np.arange(count) * 4096, np.full(count, 4096))
    stored = pool.store(slots, spans)
    assert ends.noted(slots) == [one.checksum for one in stored]
    assert len(set(ends.noted(slots))) == count
    memory[:] = 0
    leased = [replace(slot, checksum=one.checksum) for slot, one in zip(slots, stored, strict=True)]
    assert pool.load(leased, spans) == stored
    assert memory.tobytes() == kept


@pytest.mark.parametrize("ends", ["even"], indirect=True)
@pytest.mark.parametrize("copies", [0, 7, 8, 9, 10, 11])
def test_a_copy_that_stalls_goes_on_over_the_next_transport(
    ends: Ends, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """copies: those of shm that end. The probe, the words, the write, the checksum, and the read stall."""
    monkeypatch.setattr(pair_module, "PROBE_SECONDS", 0.2)
    slot, checksum = ends.slot(1), ends.memory.checksum(0)
    transports = [faulty_shm(f"stall=1/1 after {copies}"), TcpTransport()]
    pool = RemotePool(
        "kvmanager-0", ends.described(), ends.memory.regions, transports, TransferPolicy(slow_factor=1e9)
    )
    ends.pools.append(pool)
    assert pool.store([slot], ends.memory.spans(0)) == [Copied(CopyOutcome.DONE, checksum)]
    assert pool.load([replace(slot, checksum=checksum)], ends.memory.spans(2))[0].outcome is CopyOutcome.DONE
    assert ends.memory.block(2) == ends.memory.block(0)


@pytest.mark.parametrize("ends", ["even"], indirect=True)
def test_copies_keep_to_the_budget_of_the_process(ends: Ends) -> None:
    """The probe is beside it."""
    limit = 4.0 * BLOCK_BYTES
    pool = RemotePool(
        "kvmanager-0",
        ends.described(),
        ends.memory.regions,
        [TcpTransport()],
        TransferPolicy(bytes_per_second=limit),
    )
    ends.pools.append(pool)
    started = time.monotonic()
    for number in range(3):
        pool.store([ends.slot(number)], ends.memory.spans(number))
    assert 0.5 < time.monotonic() - started < 5
