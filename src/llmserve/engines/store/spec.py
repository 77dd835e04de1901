"""What vLLM makes of the connector's configuration: `kv_connector_extra_config` holds the settings."""

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingManager, OffloadingSpec, OffloadingWorker

from llmserve.engines.store.link import StoreLink
from llmserve.engines.store.manager import StoreManager
from llmserve.engines.store.worker import StoreWorker
from llmserve.kvstore.formats import Element, grouped


class StoreSpec(OffloadingSpec):
    """extra_config: kvmanager (host:port), worker_id, epoch."""

    def get_manager(self) -> OffloadingManager:
        ranks, size = self.config.parallel.world_size, self.config.worker_kv_bytes_per_block
        extra = self.extra_config
        link = StoreLink(
            str(extra["kvmanager"]),
            str(extra["worker_id"]),
            int(extra["epoch"]),
            [size] * ranks,
            [grouped(self._element(), size).text()] * ranks,
        )
        return StoreManager(link)

    def _element(self) -> Element:
        """Of the cache. Where layers are of several kinds, not all bytes are such numbers."""
        name = self.config.model.dtype
        return Element(name) if name in set(Element) and len(self.config.groups) == 1 else Element.OPAQUE

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return StoreWorker(kv_caches, self.config.parallel.rank)


class StoreConnector(OffloadingConnector):
    """vLLM's, and a load that failed is computed: vLLM's own ends the process."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        worker = self.connector_worker.worker if self.connector_worker else None
        return worker.take_failed_blocks() if isinstance(worker, StoreWorker) else set()
