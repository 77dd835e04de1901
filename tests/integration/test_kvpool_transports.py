"""Workers elsewhere: blocks of the pool move over transports, between processes."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.slots import SlotPool
from llmserve.transfer.base import Transport
from llmserve.transfer.select import makers
from tests.unit.kvstore.dram.worker_memory import BLOCK_BYTES, WorkerMemory

ROOT = Path(__file__).parents[2]


class Remote:
    def __init__(self, process: "subprocess.Popen[str]", description: bytes) -> None:
        self.process = process
        self._say(base64.b64encode(description).decode())

    def do(self, operation: str, block: int, offset: int) -> Any:
        self._say(json.dumps({"do": operation, "block": block, "offset": offset}))
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def _say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@contextmanager
def remote(kind: str, seed: int, description: bytes) -> Iterator[Remote]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.kvpool_remote", kind, str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Remote(process, description)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena("remote", 4 << 20)
    yield arena
    arena.close()


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest, arena: Arena) -> Iterator[Transport]:
    transport = makers("127.0.0.1")[request.param]()
    transport.register([arena.region])
    yield transport
    transport.close()


def test_one_remote_worker_writes_what_another_reads(arena: Arena, transport: Transport) -> None:
    slots = SlotPool(SlabMap(arena.shape.capacity_bytes), arena.generations)
    taken = slots.take([1000, BLOCK_BYTES])
    assert isinstance(taken, tuple)
    description, slot = transport.describe(), taken[1]
    with remote(transport.name, 1, description) as prefill, remote(transport.name, 2, description) as decode:
        assert slot.offset > 0
        state, checksum = prefill.do("write", 2, slot.offset)
        assert (state, checksum) == ("done", WorkerMemory(1).checksum(2))
        assert decode.do("read", 3, slot.offset) == ["done", checksum]
    held = np.frombuffer(arena.view(slot.offset, BLOCK_BYTES), np.uint8)
    assert held.tobytes() == WorkerMemory(1).block(2)
