"""Workers and owners in processes of their own, and their death in the middle of a copy."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import CommitOutcome, Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client.access import RemoteAccess, open_pool
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import CopyOutcome, PoolCopier
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers
from tests.unit.kvstore.dram.conftest import WRITER, Pool, make_pool
from tests.unit.kvstore.dram.worker_memory import BLOCK_BYTES, WorkerMemory

ROOT = Path(__file__).parents[4]
OWNER = """
import sys
from llmserve.kvstore.dram.arena import Arena
arena = Arena("owner", 2 << 20)
arena.generations[0] = 1
print(arena.description(), flush=True)
sys.stdin.read()
"""


class Worker:
    def __init__(self, arena: Arena, seed: int, kind: str = "host") -> None:
        """kind: of its memory, `host` or `device`."""
        module = "tests.unit.kvstore.dram.worker_process"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, arena.description(), str(seed), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.answer() == "attached"

    def do(self, order: str, slot: Slot) -> Any:
        assert self.process.stdin
        fields = (slot.offset, slot.length_bytes, slot.generation, slot.checksum)
        self.process.stdin.write(json.dumps({"do": order, "slot": fields}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena("processes", 2 << 20)
    yield arena
    arena.close()


@pytest.fixture
def pool(arena: Arena) -> Pool:
    return make_pool(SlabMap(arena.shape.capacity_bytes, 128 << 10), arena.generations)


@pytest.fixture
def worker(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Worker]:
    worker = Worker(arena, 5, getattr(request, "param", "host"))
    yield worker
    worker.close()


of_each_kind = pytest.mark.parametrize("worker", ["host", "device"], indirect=True)


def load(arena: Arena, slot: Slot) -> tuple[CopyOutcome, bytes]:
    memory, attached = WorkerMemory(77), AttachedArena(arena.description())
    [copied] = PoolCopier(attached, memory.regions).load([slot], memory.spans(0))
    attached.close()
    return copied.outcome, memory.block(0)


def test_one_process_stores_what_another_loads(arena: Arena, pool: Pool, worker: Worker) -> None:
    slot = pool.reserve("a", BLOCK_BYTES)
    checksum = worker.do("store", slot)
    assert pool.commit("a", slot, checksum) is CommitOutcome.STORED
    lease, [leased] = pool.lease("a")
    assert load(arena, leased) == (CopyOutcome.DONE, WorkerMemory(5).block(0))
    assert worker.do("load", leased) == ["done", True]
    pool.dram.release(lease)


@of_each_kind
def test_a_writer_killed_in_the_middle_leaves_nothing(arena: Arena, pool: Pool, worker: Worker) -> None:
    slot = pool.reserve("a", BLOCK_BYTES)
    assert worker.do("store_for_ever", slot) == "writing"
    worker.close()
    assert not pool.holds("a")
    pool.dram.forget(WRITER)
    assert (pool.used_bytes, pool.dram.orphan_slots, pool.dram.reserved_blocks) == (0, 0, 0)
    again = pool.reserve("a", BLOCK_BYTES)
    assert again.offset == slot.offset, "its slot is used again"
    with ExitStack() as stack:
        second = Worker(arena, seed=6)
        stack.callback(second.close)
        pool.commit("a", again, second.do("store", again))
    _, [leased] = pool.lease("a")
    assert load(arena, leased) == (CopyOutcome.DONE, WorkerMemory(6).block(0))


@of_each_kind
def test_a_reader_killed_in_the_middle_pins_nothing_for_ever(pool: Pool, worker: Worker) -> None:
    slot = pool.reserve("a", BLOCK_BYTES)
    pool.commit("a", slot, worker.do("store", slot))
    _, [leased] = pool.lease("a")
    assert worker.do("load_for_ever", leased) == "reading"
    worker.close()
    pool.remove("a")
    assert pool.dram.open_leases == 1
    pool.clock.advance(5)
    pool.dram.settle()
    assert pool.dram.open_leases == pool.used_bytes == 0


def test_a_reader_that_outlives_its_lease_finds_out(pool: Pool, worker: Worker) -> None:
    slot = pool.reserve("a", BLOCK_BYTES)
    pool.commit("a", slot, worker.do("store", slot))
    _, [leased] = pool.lease("a")
    assert worker.do("load_for_ever", leased) == "reading"
    pool.clock.advance(5)
    pool.remove("a")
    assert worker.answer() == "moved"


def test_a_writer_that_was_paused_for_too_long_spoils_nothing_unseen(
    arena: Arena, pool: Pool, worker: Worker
) -> None:
    """Longer than reservation and quarantine: its slot is another's when it goes on."""
    slot = pool.reserve("a", BLOCK_BYTES, seconds=10)
    assert worker.do("store_for_ever", slot) == "writing"
    os.kill(worker.process.pid, signal.SIGSTOP)
    for _ in range(2):
        pool.clock.advance(60)
        pool.dram.settle()
    again = pool.reserve("b", BLOCK_BYTES)
    assert again.offset == slot.offset
    memory, attached = WorkerMemory(6), AttachedArena(arena.description())
    [stored] = PoolCopier(attached, memory.regions).store([again], memory.spans(0))
    attached.close()
    pool.commit("b", again, stored.checksum)
    os.kill(worker.process.pid, signal.SIGCONT)
    assert worker.answer() == "moved"
    _, [leased] = pool.lease("b")
    outcome, block = load(arena, leased)
    assert outcome is CopyOutcome.CORRUPT or block == memory.block(0)


@pytest.mark.parametrize("device", [None, FakeDevice()], ids=["host", "device"])
def test_an_owner_that_was_killed_leaves_nothing_to_attach_to(device: FakeDevice | None) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout
        description = owner.stdout.readline()
        attached, memory = AttachedArena(description), WorkerMemory(1, device=device)
        shared = SharedTransfers(staging=Staging(device) if device else None)
        copier = open_pool("kvmanager-0", description, memory.regions, RemoteAccess(shared=shared))
        slot = Slot(0, BLOCK_BYTES, 1)
        assert copier.store([slot], memory.spans(0))[0].outcome is CopyOutcome.DONE
        owner.kill()
        deadline = time.monotonic() + 30
        while attached.owner_lives():
            assert time.monotonic() < deadline
        with pytest.raises(TransferError, match="its owner has ended"):
            copier.load([slot], memory.spans(0))
        copier.close()
        attached.close()
    assert "memfd:llmserve-kv-owner" not in Path("/proc/self/maps").read_text()
    assert not list(Path("/dev/shm").glob("llmserve-kv-owner*"))
    with pytest.raises(TransferError, match=r"has ended|cannot attach"):
        AttachedArena(description)
