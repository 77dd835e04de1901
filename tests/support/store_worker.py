"""A worker as the KV manager sees it: attaches to the pool over gRPC, stores and loads blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import xxhash

from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1.kvmanager_pb2_grpc import KVManagerStub

BLOCK_BYTES = 1 << 20


def chain(name: str, blocks: int) -> list[bytes]:
    return [xxhash.xxh3_128_digest(f"{name}-{number}".encode()) * 2 for number in range(blocks)]


def content(key: bytes) -> bytes:
    return np.random.default_rng(list(key)).bytes(BLOCK_BYTES)


@dataclass
class StoreWorker:
    """Attaches to the pool, and stores and loads blocks as a rank does. shown: metadata that says who it
    is."""

    address: str
    epoch: int = 1
    name: str = "prefill-0"
    shown: tuple[tuple[str, str], ...] = ()
    _me: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> "StoreWorker":
        self._channel = grpc.insecure_channel(self.address)
        self._stub: Any = KVManagerStub(self._channel)  # type: ignore[no-untyped-call]
        self._me = {"worker_id": self.name, "epoch": self.epoch}
        request = pb.AttachStoreRequest(**self._me, part_bytes=[BLOCK_BYTES], block_tokens=16)
        self._arena = AttachedArena(self._stub.AttachStore(request, timeout=10, metadata=self.shown).arena)
        return self

    def __exit__(self, *_: object) -> None:
        self._arena.close()
        self._channel.close()

    def store(self, keys: Sequence[bytes], tenant: str) -> None:
        """Asked for twice, so that it is worth a write to the tier below."""
        answer = self._prepare(keys, tenant)
        self._prepare(keys, tenant)
        fills = []
        for block in answer.stores:
            key, (slot,) = keys[block.index], map(_slot, block.slots)
            self._arena.place(slot)[1][:] = content(key)
            checksum = xxhash.xxh3_64_intdigest(content(key))
            fills.append(pb.StoreFill(block_hash=key, generation=slot.generation, checksum=checksum))
        self._settle(commits=fills)

    def load(self, keys: Sequence[bytes], tenant: str) -> int:
        """How many came, each of them right."""
        answer = self._prepare(keys, tenant, store=False)
        for block in answer.loads:
            (slot,) = map(_slot, block.slots)
            assert bytes(self._arena.place(slot)[1]) == content(keys[block.index])
        self._settle(releases=[answer.lease_id] if answer.lease_id else [])
        return len(answer.loads)

    def _prepare(self, keys: Sequence[bytes], tenant: str, *, store: bool = True) -> pb.PreparePromptResponse:
        request = pb.PreparePromptRequest(
            **self._me, tenant=tenant, block_hashes=keys, compute_seconds=0.5, load=not store, store=store
        )
        answer: pb.PreparePromptResponse = self._stub.PreparePrompt(request, timeout=10, metadata=self.shown)
        return answer

    def _settle(self, **changes: Any) -> None:
        request = pb.SettleStoreRequest(**self._me, **changes)
        self._stub.SettleStore(request, timeout=10, metadata=self.shown)


def _slot(slot: pb.StoreSlot) -> Slot:
    return Slot(slot.offset, slot.length_bytes, slot.generation, slot.checksum)
