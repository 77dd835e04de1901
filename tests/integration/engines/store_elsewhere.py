"""A rank and its link to the KV manager, without vLLM's scheduler, for test_store_elsewhere.py.

argv: the KV manager's host:port, this worker's id, the host that others reach it at, transports in their
order (with commas). Orders on stdin, one a line, as JSON: ["store", "load" or "rows", hashes in hexadecimal,
the first of as many of the engine's blocks]. Answers on stdout.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec

from llmserve.engines.store.link import StoreAnswer, StoreLink, StoreQuery
from llmserve.engines.store.links import LocatedBlock
from llmserve.engines.store.worker import StoreSlots, StoreWorker
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.access import RemoteAccess
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.transfer.engine.engine import SharedTransfers

LAYERS, BLOCKS, PAGE_BYTES = 4, 8, 48 << 10
_SECONDS = 60.0


class Rank:
    def __init__(self, kvmanager: str, name: str, engine_order: tuple[str, ...], host: str) -> None:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        self._memory = np.random.default_rng(seed).integers(0, 127, (LAYERS, BLOCKS, PAGE_BYTES), np.int8)
        caches = [CanonicalKVCacheTensor(torch.from_numpy(layer), PAGE_BYTES) for layer in self._memory]
        self._shared = SharedTransfers()
        remote = RemoteAccess(engine_order, host, shared=self._shared)
        self._worker = StoreWorker(CanonicalKVCaches(caches, []), 0, remote)
        self._link = StoreLink(kvmanager, name, 1, [LAYERS * PAGE_BYTES])
        self._jobs = 0

    def store(self, keys: Sequence[bytes], first: int) -> list[str]:
        answer = self._ask(keys, load=False)
        stores = answer.prepared.stores
        blocks = [first + block.index for block in stores]
        self._run(self._worker.submit_store, _blocks(blocks), _slots(answer, stores))
        fills = [
            pb.StoreFill(block_hash=keys[block.index], generation=block.slots[0].generation)
            for block in stores
        ]
        self._settle(answer, commits=fills)
        return [self._digest(block) for block in blocks]

    def load(self, keys: Sequence[bytes], first: int) -> list[str]:
        """What came; "failed" for what was not what it should be."""
        answer = self._ask(keys, load=True)
        loads = answer.prepared.loads
        blocks = [first + block.index for block in loads]
        if blocks:
            self._run(self._worker.submit_load, _slots(answer, loads), _blocks(blocks))
        unused = [keys[block.index] for block in answer.prepared.stores]
        self._settle(answer, releases=[answer.prepared.lease_id], aborts=unused)
        failed = self._worker.take_failed()[1]
        return ["failed" if block in failed else self._digest(block) for block in blocks]

    def rows(self, _: Sequence[bytes], __: int) -> list[tuple[str, str, int]]:
        """The pairs in the matrix, with the bytes that went over them."""
        return [(row.peer, row.transport, row.bytes) for row in self._shared.matrix.rows()]

    def close(self) -> None:
        self._worker.shutdown()
        self._link.close()

    def _ask(self, keys: Sequence[bytes], load: bool) -> StoreAnswer:
        """Asks again until the link has attached."""
        give_up = time.monotonic() + _SECONDS
        while time.monotonic() < give_up:
            ask = StoreQuery("r", "red", keys, 0, load=load, compute_seconds=0.5, timeout_seconds=10.0)
            self._link.prepare(ask)
            while not (answers := self._link.take_answers()):
                time.sleep(0.01)
            if answers[0].arena:
                return answers[0]
            time.sleep(0.05)
        raise TimeoutError("not attached")

    def _settle(self, answer: StoreAnswer, **changes: Any) -> None:
        """Returns when the KV manager has made the changes: what is stored can be loaded by others then."""
        self._link.settle(answer.arena, **changes)
        give_up = time.monotonic() + _SECONDS
        while self._link._calls:
            if time.monotonic() > give_up:
                raise TimeoutError("not settled")
            time.sleep(0.005)

    def _run(self, submit: Any, source: Any, target: Any) -> None:
        self._jobs += 1
        submit(self._jobs, source, target)
        self._worker.wait({self._jobs})
        [result] = self._worker.get_finished()
        assert (result.job_id, result.success) == (self._jobs, True)

    def _digest(self, block: int) -> str:
        return hashlib.sha256(self._memory[:, block].tobytes()).hexdigest()


def _blocks(numbers: list[int]) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(numbers, [len(numbers)], [0])


def _slots(answer: StoreAnswer, blocks: Sequence[pb.StoreBlock]) -> StoreSlots:
    return StoreSlots(
        LocatedBlock(
            "kvmanager-0",
            answer.arena,
            tuple(Slot(s.offset, s.length_bytes, s.generation, s.checksum) for s in block.slots),
        )
        for block in blocks
    )


def main() -> None:
    kvmanager, name, host, order = sys.argv[1:5]
    rank = Rank(kvmanager, name, tuple(filter(None, order.split(","))), host)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        operation, hashes, first = json.loads(line)
        keys = [bytes.fromhex(one) for one in hashes]
        print(json.dumps(getattr(rank, operation)(keys, first)), flush=True)
    rank.close()
