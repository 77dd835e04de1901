"""How much host memory engines on GPUs pin: it is never swapped, and counts in a container's limit."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.config.schema import Manifest
from llmserve.transfer.devices import staging
from llmserve.transfer.ucx import staged

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class PinnedMemory:
    """rank_bytes: the most that the slots of one rank take, through which `tcp` and `ucx` stage. ranks: the
    processes with a GPU on one host. store_bytes: the DRAM of the KV store on that host, which each rank maps
    and pins."""

    rank_bytes: int
    ranks: int
    store_bytes: int = 0

    @classmethod
    def of_host(cls, manifest: Manifest, models: Sequence[str]) -> "PinnedMemory":
        """models: that of each engine on GPUs of one host, beside the KV managers."""
        dram_gb = sum(one.capacity_gb for one in manifest.storageClasses if one.tier == "dram")
        engines = [manifest.for_model(name) for name in models]
        rank_bytes = max(map(_rank_bytes, engines), default=0)
        return cls(rank_bytes, sum(map(_ranks, engines)), int(dram_gb * _GIB))

    @classmethod
    def of_pod(cls, manifest: Manifest) -> "PinnedMemory":
        """manifest: of one model. The KV managers have pods
        of their own, whose memory an engine does not map."""
        return cls(_rank_bytes(manifest), _ranks(manifest))

    @property
    def process_bytes(self) -> int:
        return self.rank_bytes + self.store_bytes

    @property
    def host_bytes(self) -> int:
        return self.ranks * self.rank_bytes + self.store_bytes


def _rank_bytes(manifest: Manifest) -> int:
    if not (manifest.deployment.disaggregated or manifest.storageClasses):
        return 0  # no KV leaves an engine
    has_ucx = "ucx" in manifest.transfer.gpu_order
    return staging.PINNED_BYTES + (staged.PINNED_BYTES if has_ucx else 0)


def _ranks(manifest: Manifest) -> int:
    return manifest.engine.tensor_parallel * manifest.engine.pipeline_parallel
