"""vLLM's own offloading on a CPU, which it refuses: all of it but the copy, which needs a GPU's streams.

Its managers, its memory and its file system tier run as they are. The copy between the engine's blocks and
that memory is one memcpy for each layer of a block, done at once: that is the least it can cost here.
"""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

_Rows = npt.NDArray[np.int8]


class HostCpuSpec(CPUOffloadingSpec):
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        shapes = [(self.num_chunks, one.page_size_bytes) for one in kv_caches.tensors]
        return HostWorker(kv_caches, [np.zeros(shape, np.int8) for shape in shapes])


class HostTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        region = SharedOffloadRegion(
            engine_id=self._engine_id,
            num_chunks=self.num_chunks,
            rank=0,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        views = [region.create_next_worker_view(one.page_size_bytes) for one in kv_caches.tensors]
        return HostWorker(kv_caches, [view.numpy() for view in views], region)


class HostWorker(OffloadingWorker):
    """One rank, one block a chunk. region: closed with it."""

    def __init__(
        self, caches: CanonicalKVCaches, memory: Sequence[_Rows], region: SharedOffloadRegion | None = None
    ) -> None:
        self._blocks = [_rows(one.tensor, one.page_size_bytes) for one in caches.tensors]
        self._memory, self._region = memory, region
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        return self._copy(job_id, self._blocks, src_spec, self._memory, dst_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copy(job_id, self._memory, src_spec, self._blocks, dst_spec)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Everything ended when it was submitted."""

    def shutdown(self) -> None:
        self._memory = []
        if self._region is not None:
            self._region.cleanup()

    def _copy(
        self,
        job_id: int,
        sources: Sequence[_Rows],
        source: LoadStoreSpec,
        targets: Sequence[_Rows],
        target: LoadStoreSpec,
    ) -> bool:
        assert isinstance(source, BlockIDsLoadStoreSpec)
        assert isinstance(target, BlockIDsLoadStoreSpec)
        started, moved = time.perf_counter(), 0
        for from_rows, to_rows in zip(sources, targets, strict=True):
            for one, other in zip(source.block_ids, target.block_ids, strict=True):
                to_rows[other] = from_rows[one]
                moved += from_rows.shape[1]
        self._finished.append(TransferResult(job_id, True, moved, time.perf_counter() - started))
        return True


def _rows(tensor: torch.Tensor, page_bytes: int) -> _Rows:
    rows: _Rows = tensor.view(torch.int8).view((-1, page_bytes)).numpy()
    return rows
