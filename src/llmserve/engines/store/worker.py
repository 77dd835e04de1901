"""A rank's half: copies between the engine's blocks and the pool's memory, on a thread of its own.

On a device a job waits for the mark of all that the engine had launched when it was submitted: kernels that
write the blocks to store, and kernels that still use the blocks to load into. A job has ended when its copies
have, so whatever the engine launches after that sees what was loaded. `connector/stream_order.py` says what
this relies on.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from llmserve.core.errors import TransferError
from llmserve.engines.connector.stream_order import StreamOrder
from llmserve.engines.store.links import LocatedBlock
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.access import RemoteAccess, open_pool
from llmserve.kvstore.dram.client.copier import CopyOutcome, PoolAccess
from llmserve.transfer.base import Memory, Region, Spans
from llmserve.transfer.devices import Copies, HostCopies, Mark

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RankSlots:
    """The slots of one rank in the memory of one KV manager. at: places of the blocks in the job."""

    manager: str
    arena: str
    at: tuple[int, ...]
    slots: tuple[Slot, ...]


class StoreSlots(LoadStoreSpec):
    """The blocks of a job, from the scheduler's half to the ranks."""

    def __init__(self, blocks: Iterable[LocatedBlock] = ()) -> None:
        """blocks: in the order of the engine's blocks."""
        self.blocks = tuple(blocks)

    def __repr__(self) -> str:
        return f"StoreSlots({len(self.blocks)} blocks)"

    def of_rank(self, rank: int) -> Iterator[RankSlots]:
        """One for each memory."""
        memories: dict[tuple[str, str], list[int]] = {}
        for at, block in enumerate(self.blocks):
            memories.setdefault((block.manager, block.arena), []).append(at)
        for (manager, arena), places in memories.items():
            slots = tuple(self.blocks[at].slots[rank] for at in places)
            yield RankSlots(manager, arena, tuple(places), slots)


# Copies these blocks; returns those that hold garbage now.
_Copy = Callable[[RankSlots, Sequence[int]], set[int]]


class StoreWorker(OffloadingWorker):
    """The blocks of a load that failed hold garbage (`take_failed`); a store that failed leaves no
    checksum beside its slot. Both are finished jobs for vLLM."""

    def __init__(self, caches: CanonicalKVCaches, rank: int, remote: RemoteAccess) -> None:
        """remote: how to reach pools. Errors: TransferError for blocks that are not in host memory, if it has
        no staging."""
        self._rank, self._remote = rank, remote
        staging = remote.shared.staging
        self._copies: Copies = staging.copies if staging else HostCopies()
        self._stream = StreamOrder(self._copies)
        self._memory = _EngineBlocks(caches, self._copies.memory)
        self._thread = ThreadPoolExecutor(1, "kv-store")
        self._jobs: dict[int, Future[tuple[TransferResult, set[int]]]] = {}
        self._pools: dict[str, _Pool] = {}  # by KV manager
        self._failed_loads: set[int] = set()
        self._failed_blocks: set[int] = set()

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        return self._submit(job_id, self._store, dst_spec, src_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._submit(job_id, self._load, src_spec, dst_spec)

    def get_finished(self) -> list[TransferResult]:
        done = [job_id for job_id, job in self._jobs.items() if job.done()]
        results = [self._jobs.pop(job_id).result() for job_id in done]
        for result, failed in results:
            if failed:
                self._failed_loads.add(result.job_id)
                self._failed_blocks |= failed
        return [result for result, _ in results]

    def wait(self, job_ids: set[int]) -> None:
        wait([self._jobs[job_id] for job_id in job_ids if job_id in self._jobs], _WAIT_SECONDS)

    def take_failed(self) -> tuple[set[int], set[int]]:
        """The loads that `get_finished` has returned and that failed, and their blocks that hold garbage."""
        failed = self._failed_loads, self._failed_blocks
        self._failed_loads, self._failed_blocks = set(), set()
        return failed

    def shutdown(self) -> None:
        self._thread.shutdown()
        for manager in list(self._pools):
            self._let_go(manager)

    # -- on the thread

    def _submit(self, job_id: int, copy: _Copy, slots: LoadStoreSpec, blocks: GPULoadStoreSpec) -> bool:
        assert isinstance(slots, StoreSlots)
        job = _RankJob(job_id, slots, blocks.block_ids.tolist(), self._stream.before_step())
        self._jobs[job_id] = self._thread.submit(partial(self._run, copy, job))
        return True

    def _run(self, copy: _Copy, job: "_RankJob") -> tuple[TransferResult, set[int]]:
        started = time.perf_counter()
        failed: set[int] = set()
        for part in job.slots.of_rank(self._rank):
            failed |= self._copied(copy, part, [job.blocks[at] for at in part.at], job.launched)
        size = len(job.blocks) * self._memory.block_bytes
        return TransferResult(job.job_id, True, size, time.perf_counter() - started), failed

    def _copied(self, copy: _Copy, part: RankSlots, blocks: Sequence[int], launched: Mark) -> set[int]:
        try:
            self._copies.enter()
            launched.wait()
            return copy(part, blocks)
        except TransferError as error:
            _log.warning("KV store: %s", error.message)
            return set(blocks) if copy == self._load else set()

    def _store(self, part: RankSlots, blocks: Sequence[int]) -> set[int]:
        self._reached(part).store(part.slots, self._memory.spans(blocks))
        return set()

    def _load(self, part: RankSlots, blocks: Sequence[int]) -> set[int]:
        copied = self._reached(part).load(part.slots, self._memory.spans(blocks))
        pairs = zip(blocks, copied, strict=True)
        return {block for block, one in pairs if one.outcome is not CopyOutcome.DONE}

    def _reached(self, part: RankSlots) -> PoolAccess:
        """One memory for each KV manager: of one that was restarted, the earlier is let go.
        Errors: TransferError."""
        pool = self._pools.get(part.manager)
        if pool is None or pool.described != part.arena:
            self._let_go(part.manager)
            pool = _Pool(part.arena, open_pool(part.manager, part.arena, self._memory.regions, self._remote))
            self._pools[part.manager] = pool
        return pool.access

    def _let_go(self, manager: str) -> None:
        if pool := self._pools.pop(manager, None):
            pool.access.close()


@dataclass(frozen=True, slots=True)
class _RankJob:
    """launched: the mark of what the engine had launched when it submitted the job."""

    job_id: int
    slots: StoreSlots
    blocks: Sequence[int]
    launched: Mark


@dataclass(frozen=True, slots=True)
class _Pool:
    described: str
    access: PoolAccess


class _EngineBlocks:
    """Where the pieces of a block lie: one in each layer's tensor."""

    def __init__(self, caches: CanonicalKVCaches, memory: Memory) -> None:
        """memory: what the tensors are in. Their bytes are not looked at."""
        tensors = [one.tensor for one in caches.tensors]
        if memory.on_host and any(tensor.device.type != "cpu" for tensor in tensors):
            raise TransferError(
                "the KV is in the memory of a device, and the store was given no staging for it"
            )
        self._strides = np.array([tensor.stride(0) for tensor in tensors], np.int64)
        self._lengths = np.array([one.page_size_bytes for one in caches.tensors], np.int64)
        self.block_bytes = int(self._lengths.sum())
        self.regions = [
            Region(tensor.data_ptr(), (len(tensor) - 1) * tensor.stride(0) + one.page_size_bytes, memory)
            for tensor, one in zip(tensors, caches.tensors, strict=True)
        ]

    def spans(self, blocks: Sequence[int]) -> Spans:
        """Block after block, its layers in order."""
        layers = len(self._strides)
        offsets = np.multiply.outer(np.array(blocks, np.int64), self._strides).ravel()
        regions = np.tile(np.arange(layers, dtype=np.int64), len(blocks))
        return Spans(regions, offsets, np.tile(self._lengths, len(blocks)))
