"""A rank's half: copies between the engine's blocks and the pool's memory, on a thread of its own."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from llmserve.core.errors import StartFailed, TransferError
from llmserve.engines.store.words import StoreSlots
from llmserve.kvstore.pool.access import Elsewhere, PoolAccess, reach
from llmserve.kvstore.pool.copier import CopyOutcome
from llmserve.transfer.base import Region, Spans

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 30.0
# Copies these blocks; returns those that hold garbage now.
_Copy = Callable[[StoreSlots, Sequence[int]], set[int]]


class StoreWorker(OffloadingWorker):
    """The blocks of a load that failed hold garbage (`take_failed_blocks`); a store that failed leaves no
    checksum beside its slot. Both are finished jobs for vLLM."""

    def __init__(self, caches: CanonicalKVCaches, rank: int, elsewhere: Elsewhere) -> None:
        """elsewhere: how to reach a pool that is not on this host. Errors: StartFailed for blocks that are
        not in host memory."""
        self._rank, self._elsewhere = rank, elsewhere
        self._memory = _EngineBlocks(caches)
        self._thread = ThreadPoolExecutor(1, "kv-store")
        self._jobs: dict[int, Future[tuple[TransferResult, set[int]]]] = {}
        self._pool: PoolAccess | None = None
        self._described = ""
        self._failed: set[int] = set()

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        return self._submit(job_id, self._store, dst_spec, src_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._submit(job_id, self._load, src_spec, dst_spec)

    def get_finished(self) -> list[TransferResult]:
        done = [job_id for job_id, job in self._jobs.items() if job.done()]
        results = [self._jobs.pop(job_id).result() for job_id in done]
        self._failed.update(*(failed for _, failed in results))
        return [result for result, _ in results]

    def wait(self, job_ids: set[int]) -> None:
        wait([self._jobs[job_id] for job_id in job_ids if job_id in self._jobs], _WAIT_SECONDS)

    def take_failed_blocks(self) -> set[int]:
        """Of the loads that `get_finished` has told of."""
        failed, self._failed = self._failed, set()
        return failed

    def shutdown(self) -> None:
        self._thread.shutdown()
        self._let_go()

    # -- on the thread

    def _submit(self, job_id: int, copy: _Copy, slots: LoadStoreSpec, blocks: GPULoadStoreSpec) -> bool:
        assert isinstance(slots, StoreSlots)
        numbers = blocks.block_ids.tolist()
        self._jobs[job_id] = self._thread.submit(partial(self._run, job_id, copy, slots, numbers))
        return True

    def _run(
        self, job_id: int, copy: _Copy, slots: StoreSlots, blocks: Sequence[int]
    ) -> tuple[TransferResult, set[int]]:
        started = time.perf_counter()
        try:
            failed = copy(slots, blocks)
        except TransferError as error:
            _log.warning("KV store: %s", error.message)
            failed = set(blocks) if copy == self._load else set()
        size = len(blocks) * self._memory.block_bytes
        return TransferResult(job_id, True, size, time.perf_counter() - started), failed

    def _store(self, slots: StoreSlots, blocks: Sequence[int]) -> set[int]:
        self._reached(slots.arena).store(slots.of_rank(self._rank), self._memory.spans(blocks))
        return set()

    def _load(self, slots: StoreSlots, blocks: Sequence[int]) -> set[int]:
        pool = self._reached(slots.arena)
        copied = pool.load(slots.of_rank(self._rank), self._memory.spans(blocks))
        pairs = zip(blocks, copied, strict=True)
        return {block for block, one in pairs if one.outcome is not CopyOutcome.DONE}

    def _reached(self, description: str) -> PoolAccess:
        """Errors: TransferError."""
        if description != self._described or self._pool is None:
            self._let_go()
            self._pool = reach(description, self._memory.regions, self._elsewhere)
            self._described = description
        return self._pool

    def _let_go(self) -> None:
        if self._pool:
            self._pool.close()
        self._pool = None


class _EngineBlocks:
    """Where the pieces of a block lie: one in each layer's tensor."""

    def __init__(self, caches: CanonicalKVCaches) -> None:
        tensors = [one.tensor for one in caches.tensors]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            raise StartFailed("the KV store cannot reach blocks in GPU memory yet; remove storageClasses")
        self._strides = np.array([tensor.stride(0) for tensor in tensors], np.int64)
        self._lengths = np.array([one.page_size_bytes for one in caches.tensors], np.int64)
        self.block_bytes = int(self._lengths.sum())
        self.regions = [
            Region(tensor.data_ptr(), (len(tensor) - 1) * tensor.stride(0) + one.page_size_bytes)
            for tensor, one in zip(tensors, caches.tensors, strict=True)
        ]

    def spans(self, blocks: Sequence[int]) -> Spans:
        """Block after block, its layers in order."""
        layers = len(self._strides)
        offsets = np.multiply.outer(np.array(blocks, np.int64), self._strides).ravel()
        regions = np.tile(np.arange(layers, dtype=np.int64), len(blocks))
        return Spans(regions, offsets, np.tile(self._lengths, len(blocks)))
