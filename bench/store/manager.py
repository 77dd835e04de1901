"""A KV manager of its own for `bench store`: started, restarted, and filled."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import xxhash
import yaml

from bench.ports import free_port
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1.kvmanager_pb2_grpc import KVManagerStub

BLOCK_BYTES = 128 * 23_040  # of SmolLM2-135M, 128 tokens, bfloat16
_QUIET_SECONDS = 1.5
_AT_ONCE = 8
_ROOM_SECONDS, _WRITING_SECONDS = 20.0, 0.02


@dataclass
class Manager:
    """A process at one address, whatever it is started with. scratch: for its files."""

    scratch: Path
    model: str
    endpoint: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    _process: "subprocess.Popen[str] | None" = None

    def start(self, classes: Sequence[dict[str, Any]]) -> None:
        """Returns when it is ready."""
        path = self.scratch / "store.yaml"
        path.write_text(yaml.safe_dump(_manifest(self.model, classes)))
        command = [sys.executable, "-m", "llmserve.kvstore", "--manifest", str(path), "--name", "kv-0"]
        with (self.scratch / "kvmanager.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", self.endpoint], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        if not any("LLMSERVE_READY" in line for line in self._process.stdout):
            raise RuntimeError((self.scratch / "kvmanager.log").read_text()[-2000:])

    def stop(self) -> None:
        """Idempotent."""
        process, self._process = self._process, None
        if process:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def fill(self, blocks: int) -> None:
        """With so many blocks that nobody asks for, from DRAM down."""
        with grpc.insecure_channel(self.endpoint) as channel:
            stub: Any = KVManagerStub(channel)  # type: ignore[no-untyped-call]
            me: dict[str, Any] = {"worker_id": "filler", "epoch": time.time_ns()}
            arena = AttachedArena(
                stub.AttachStore(pb.AttachStoreRequest(**me, part_bytes=[BLOCK_BYTES])).arena
            )
            try:
                for first in range(0, blocks, _AT_ONCE):
                    hashes = [os.urandom(32) for _ in range(min(_AT_ONCE, blocks - first))]
                    _fill_some(stub, arena, me, hashes)
            finally:
                arena.close()


@contextmanager
def manager(scratch: Path, model: str) -> Iterator[Manager]:
    one = Manager(scratch, model)
    try:
        yield one
    finally:
        one.stop()


def _fill_some(stub: Any, arena: AttachedArena, me: dict[str, Any], hashes: list[bytes]) -> None:
    """With whatever the slots hold. Again and again: what is on its way down has the room yet."""
    until = time.monotonic() + _ROOM_SECONDS
    while hashes and time.monotonic() < until:
        answer = stub.PreparePrompt(pb.PreparePromptRequest(**me, block_hashes=hashes, store=True))
        fills = [_fill(arena, hashes[one.index], one.slots[0]) for one in answer.stores]
        stub.SettleStore(pb.SettleStoreRequest(**me, commits=fills))
        stored = {fill.block_hash for fill in fills}
        hashes = [key for key in hashes if key not in stored]
        time.sleep(_WRITING_SECONDS)
    if hashes:
        raise TimeoutError(f"the store takes no more blocks in; {len(hashes)} are left")


def _fill(arena: AttachedArena, key: bytes, slot: pb.StoreSlot) -> pb.StoreFill:
    _, view = arena.place(Slot(slot.offset, slot.length_bytes, slot.generation, 0))
    checksum = xxhash.xxh3_64_intdigest(view)
    return pb.StoreFill(block_hash=key, part=0, generation=slot.generation, checksum=checksum)


async def written(directory: Path) -> None:
    """Waits until nothing changes in there any more."""
    seen, since = _state(directory), time.monotonic()
    while time.monotonic() - since < _QUIET_SECONDS:
        await asyncio.sleep(0.1)
        if (now := _state(directory)) != seen:
            seen, since = now, time.monotonic()


def dram(gib: float) -> dict[str, Any]:
    return {"name": "ram", "tier": "dram", "capacity_gb": gib}


def nvme(gib: float, directory: Path, write: str = "auto") -> dict[str, Any]:
    return {
        "name": "disk",
        "tier": "nvme",
        "capacity_gb": gib,
        "location": str(directory),
        "write": write,
    }


def s3(gib: float, bucket: str, endpoint: str, write: str = "auto") -> dict[str, Any]:
    where = {"location": f"s3://{bucket}/{uuid.uuid4().hex}", "endpoint": endpoint}
    return {"name": "s3", "tier": "object", "capacity_gb": gib, "write": write, **where}


def _manifest(model: str, classes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    spec = {"models": {"primary": {"source": model}}, "storageClasses": list(classes)}
    return {"apiVersion": "llmserve/v1", "kind": "LLMServe", **spec}


def _state(directory: Path) -> list[tuple[str, int, int]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted((str(path), path.stat().st_blocks, path.stat().st_mtime_ns) for path in files)
