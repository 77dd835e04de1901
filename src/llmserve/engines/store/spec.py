"""vLLM's entry points to the store: `kv_connector_extra_config` holds the settings."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading import scheduler as offloading_scheduler
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingManager, OffloadingSpec, OffloadingWorker

from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.store.block_cost import BlockCost
from llmserve.engines.store.link import StoreLink
from llmserve.engines.store.links import StoreLinks
from llmserve.engines.store.manager import StoreManager
from llmserve.engines.store.worker import StoreWorker
from llmserve.kvstore.dram.client.access import RemoteAccess
from llmserve.kvstore.dram.client.quantized import Codes
from llmserve.kvstore.formats import BlockShape, Element, Quantize, grouped
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorMetadata,
        KVConnectorRole,
        KVConnectorTransferResults,
    )
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class StoreSpec(OffloadingSpec):
    """extra_config: kvmanagers (of each host:port, always in the same order), worker_id, epoch; engine_order,
    host and policy, as of the hand-over; quantize, of the DRAM class. Blocks of all groups of layers have one
    size (KvGroups). shared: set before `get_worker` where the process has other transfers, too."""

    shared: SharedTransfers | None = None

    def get_manager(self) -> OffloadingManager:
        # It warns of each block that is to be stored one step later.
        offloading_scheduler.logger.addFilter(_says_something_else)
        managers = self.extra_config["kvmanagers"]
        links = StoreLinks(len(managers), lambda at, notify: self._link(managers[at], notify))
        return StoreManager(links, BlockCost(self.config.groups[0].tokens_per_block))

    def _link(self, kvmanager: str, notify: Callable[[], None]) -> StoreLink:
        ranks, codes = self.config.parallel.world_size, self._codes()
        shape = codes.stored_shape if codes else self._shape()
        return StoreLink(
            kvmanager,
            str(self.extra_config["worker_id"]),
            int(self.extra_config["epoch"]),
            [shape.size_bytes] * ranks,
            [shape.text()] * ranks,
            block_tokens=self.tokens_per_block[0],
            notify=notify,
        )

    def _shape(self) -> BlockShape:
        """That of a rank's part of a block. Its elements are of the cache's type."""
        name = self.config.model.dtype
        element = Element(name) if name in set(Element) else Element.OPAQUE
        return grouped(element, self.config.worker_kv_bytes_per_block)

    def _codes(self) -> Codes | None:
        """How the pool keeps blocks, if not as they are. Bytes that are no numbers are not quantized."""
        grid, shape = Quantize(self.extra_config["quantize"]), self._shape()
        is_raw = grid is Quantize.NONE or shape.element is Element.OPAQUE
        return None if is_raw else Codes(shape, grid)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        extra = self.extra_config
        policy = TransferPolicy(**extra["policy"])
        shared = self.shared or SharedTransfers(policy.bytes_per_second)
        order, host = tuple(extra["engine_order"]), str(extra["host"])
        credentials = Credentials.read(CallerRole.WORKER, str(extra["worker_id"]))
        remote = RemoteAccess(order, host, policy, shared, self._codes(), credentials)
        return StoreWorker(kv_caches, self.config.parallel.rank, remote)


class StoreConnector(OffloadingConnector):
    """vLLM's, but for four things: a load that failed is computed, where vLLM's own ends the process; copies
    begin before a step computes; the engine's pace is measured; and a scheduler that only waits for the store
    does not spin."""

    def __init__(
        self, vllm_config: "VllmConfig", role: "KVConnectorRole", kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._groups = KvGroups.of(kv_cache_config, vllm_config.cache_config.block_size)
        if self.connector_scheduler is not None:
            self._manager().groups = self._groups

    # -- a rank's half

    def share(self, shared: SharedTransfers) -> None:
        """Call it before vLLM registers the KV memory."""
        assert self.connector_worker is not None, "the half of a rank"
        assert isinstance(self.connector_worker.spec, StoreSpec)
        self.connector_worker.spec.shared = shared
        shared.with_store = True

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Names the blocks of a model with one group. vLLM computes from the first of them on."""
        return set() if self._groups.are_several else self._take_failed()[1]

    def get_transfer_results(self, finished_req_ids: set[str]) -> "KVConnectorTransferResults":
        """Names the requests of a model with several groups. vLLM computes all of their tokens."""
        loading = dict(self.connector_worker._load_jobs) if self.connector_worker else {}
        results = super().get_transfer_results(finished_req_ids)
        if self._groups.are_several:
            results.failed_recving.update(loading[job_id] for job_id in self._take_failed()[0])
        return results

    def _take_failed(self) -> tuple[set[int], set[int]]:
        """The loads that failed since the last call, and their blocks."""
        worker = self.connector_worker.worker if self.connector_worker else None
        return worker.take_failed() if isinstance(worker, StoreWorker) else (set(), set())

    def bind_connector_metadata(self, connector_metadata: "KVConnectorMetadata") -> None:
        """On CPU, `start_load_kv` comes when the step has been computed: a load would take another step."""
        super().bind_connector_metadata(connector_metadata)
        super().start_load_kv(None)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Done already."""

    # -- the scheduler's half

    def on_new_request(self, request: "Request") -> None:
        super().on_new_request(request)
        self._manager().note_length(request.request_id, request.num_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> "KVConnectorMetadata":
        manager, tokens = self._manager(), scheduler_output.total_num_scheduled_tokens
        meta = super().build_connector_meta(scheduler_output)
        if not tokens:
            manager.wait_for_answer()
        manager.pace.begins(tokens, time.monotonic())
        return meta

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        manager = self._manager()
        manager.pace.ended(time.monotonic())
        if connector_output.invalid_block_ids:
            manager.loads_failed()
        manager.loads_failed(connector_output.failed_recving)
        super().update_connector_output(connector_output)

    def _manager(self) -> StoreManager:
        manager = self.scheduler.manager
        assert isinstance(manager, StoreManager)
        return manager


def _says_something_else(record: logging.LogRecord) -> bool:
    return "cannot store chunks" not in record.msg
