"""An engine's store without vLLM's scheduler: a scheduler's half and its rank, over real links."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import xxhash
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LookupResult,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)

from llmserve.engines.store.block_cost import BlockCost
from llmserve.engines.store.link import StoreLink
from llmserve.engines.store.links import StoreLinks
from llmserve.engines.store.manager import StoreManager
from llmserve.engines.store.worker import StoreWorker
from llmserve.kvstore.dram.client.access import RemoteAccess
from llmserve.kvstore.sharding import RUN_BLOCKS

SECONDS = 30.0
BLOCK_BYTES = 16 << 10
BLOCK_TOKENS = 16
PROMPT_BLOCKS = 3 * RUN_BLOCKS


def chain(name: str, blocks: int = PROMPT_BLOCKS) -> list[OffloadKey]:
    hashes = (xxhash.xxh3_128_digest(f"{name}-{number}".encode()) * 2 for number in range(blocks))
    return [make_offload_key(block_hash, 0) for block_hash in hashes]


@dataclass
class Engine:
    """A scheduler and its rank, with the store between them. Each request gets the first blocks."""

    addresses: list[str]
    asking_seconds: float = 0.0
    _requests: int = 0
    _jobs: int = 0
    memory: torch.Tensor = field(
        default_factory=lambda: torch.zeros((PROMPT_BLOCKS, BLOCK_BYTES), dtype=torch.int8)
    )

    def __enter__(self) -> "Engine":
        refs = [[CanonicalKVCacheRef(0, BLOCK_BYTES)]]
        tensors = [CanonicalKVCacheTensor(self.memory, BLOCK_BYTES)]
        self.worker = StoreWorker(CanonicalKVCaches(tensors, refs), 0, RemoteAccess((), "127.0.0.1"))
        self.manager = StoreManager(StoreLinks(len(self.addresses), self._link), BlockCost(BLOCK_TOKENS))
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.shutdown()
        self.worker.shutdown()

    def _link(self, at: int, notify: Callable[[], None]) -> StoreLink:
        return StoreLink(self.addresses[at], "w", 1, [BLOCK_BYTES], notify=notify)

    def serve(self, keys: list[OffloadKey]) -> int:
        """A request: what is stored is loaded, the rest is computed, and stored. Returns how many blocks were
        loaded; the memory is right in any case."""
        self._requests += 1
        context = ReqContext(f"r{self._requests}", {"tenant": "red"})
        self.manager.on_new_request(context)
        for at, key in enumerate(keys):
            context.set_offload_key_position(key, (at + 1) * BLOCK_TOKENS)
        self.memory.zero_()
        held = self._looked_up(keys, context)
        loaded = self._load(keys[:held], context) if held else 0
        for at in range(loaded, len(keys)):
            self.memory[at] = content(keys[at])
        self._store(keys[loaded:], context, loaded)
        self.manager.on_request_finished(context)
        assert all(torch.equal(self.memory[at], content(key)) for at, key in enumerate(keys))
        return loaded

    def _looked_up(self, keys: list[OffloadKey], context: ReqContext) -> int:
        began = time.monotonic()
        while self.manager.lookup(keys[0], context) is LookupResult.RETRY:
            assert time.monotonic() < began + SECONDS
            self._step()
        self.asking_seconds += time.monotonic() - began
        found = [self.manager.lookup(key, context) is LookupResult.HIT for key in keys]
        return found.index(False) if False in found else len(found)

    def _load(self, keys: list[OffloadKey], context: ReqContext) -> int:
        spec = self.manager.prepare_load(keys, context)
        self._ended(self.worker.submit_load(self._job(), spec, _blocks(0, len(keys))))
        failed = self.worker.take_failed()[1]
        if failed:
            self.manager.loads_failed()
        self.manager.complete_load(keys, context)
        return min(failed, default=len(keys))

    def _store(self, keys: list[OffloadKey], context: ReqContext, first: int) -> None:
        deadline = time.monotonic() + SECONDS
        while (output := self.manager.prepare_store(keys, context)) is None:
            assert time.monotonic() < deadline
            self._step()
        chosen = list(output.keys_to_store)
        blocks = [first + keys.index(key) for key in chosen]
        spec = GPULoadStoreSpec(blocks, [len(blocks)], [0])
        self._ended(self.worker.submit_store(self._job(), spec, output.store_spec))
        self.manager.complete_store(chosen, context)

    def _job(self) -> int:
        self._jobs += 1
        return self._jobs

    def _ended(self, submitted: bool) -> None:
        assert submitted
        self.worker.wait({self._jobs})
        assert [result.job_id for result in self.worker.get_finished()] == [self._jobs]

    def _step(self) -> None:
        self.manager.on_schedule_end(ScheduleEndContext([], []))
        self.manager.wait_for_answer()


def content(key: OffloadKey) -> torch.Tensor:
    seed = xxhash.xxh32_intdigest(key)
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (BLOCK_BYTES,), generator=made, dtype=torch.int8)


def _blocks(first: int, count: int) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(list(range(first, first + count)), [count], [first])
