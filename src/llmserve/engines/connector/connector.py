"""The class that vLLM loads (kv_connector_module_path). It only delegates to its two halves."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tp_group

from llmserve.core.process import exit_so_when_done
from llmserve.engines.connector import forgetting, resting, rewinding, verifying
from llmserve.engines.connector.forgetting import AdapterBlocks
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.connector.memory import kernel_of, kv_layout, layer_indices, packing_of
from llmserve.engines.connector.orders import (
    Continuations,
    HandoverStats,
    NoVllmMetrics,
    RankEndpoint,
    StepOrders,
)
from llmserve.engines.connector.scheduler_side import SchedulerSide
from llmserve.engines.connector.settings import ConnectorSettings, EngineReadyFile
from llmserve.engines.connector.worker_side import WorkerSide, staging_of
from llmserve.engines.kv_transfer import HeadShard
from llmserve.engines.spec import computation_words
from llmserve.transfer.engine.engine import SharedTransfers

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class LLMServeConnector(KVConnectorBase_V1, SupportsHMA):
    """shared: belongs to the hand-over's transfers, and to those of a store beside it."""

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._settings = ConnectorSettings.from_extra_config(
            vllm_config.kv_transfer_config.kv_connector_extra_config
        )
        self.shared = SharedTransfers(self._settings.policy.bytes_per_second)
        self._block_size = vllm_config.cache_config.block_size
        self._groups = KvGroups.of(kv_cache_config, self._block_size)
        self._worker: WorkerSide | None = None
        self._layers: dict[str, int] = {}
        self._scheduler = SchedulerSide(
            self._settings.worker_id, self._settings.epoch, self._groups, self._settings.lease_seconds
        )
        self._of_adapters = AdapterBlocks()
        if role is KVConnectorRole.SCHEDULER:
            from vllm.v1.engine import EngineCoreRequestType
            from vllm.v1.engine.core import EngineCore, EngineCoreProc

            forgetting.install(EngineCore, self._of_adapters)
            resting.install(EngineCoreProc, self._rank_here, EngineCoreRequestType.WAKEUP)

    # -- worker side

    def register_kv_caches(self, kv_caches: dict[str, "torch.Tensor"]) -> None:
        tensor = next(iter(kv_caches.values()))
        from vllm.v1.worker import gpu_model_runner  # costs nothing here: it has called this

        rewinding.install(tensor.device.type, inspect.getsource(gpu_model_runner))
        if self._vllm_config.speculative_config is not None:
            from vllm.v1.sample import rejection_sampler

            verifying.install(tensor.device.type, rejection_sampler)
        kernel = kernel_of(self._vllm_config, kv_caches, tensor.shape[-1])
        layout = kv_layout(
            kv_caches,
            self._kv_cache_config.num_blocks,
            self._block_size,
            kv_dtype=self._kv_dtype(),
            axes=str(self._vllm_config.cache_config.kv_cache_layout),
            windows=self._groups.windows,
            packing=packing_of(kernel, tensor.shape[-1], tensor.element_size()),
            shard=self._shard(),
            model=f"{self._settings.model}, {self._computation()}",
        )
        self._layers = layer_indices(kv_caches, self._group_of())
        self.shared.staging = staging_of(layout.regions)
        self._worker = WorkerSide(self._settings, layout, self.shared)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata:
        return self._acting().endpoint()

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Before the step computes: orders cost nothing, and others wait for them."""
        super().bind_connector_metadata(connector_metadata)
        self._acting().execute(self._bound_orders())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Too late: vLLM calls it after a forward pass, which on CPU has by then taken all of its time."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: vLLM does not schedule a request before its load has ended."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """In the middle of a forward pass. Blocks that are not pushed stay where prefill wrote them."""
        layer = self._layers.get(layer_name)
        if layer is not None:
            self._acting().computed(layer, self._bound_orders().push)

    def wait_for_save(self) -> None:
        """Nothing to wait for: blocks are pinned until they are written, or nobody trusts what was."""

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._acting().take_continuations()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        worker = self._acting()
        if self._bound_orders().awaits_kv:
            worker.wait_for_kv()
        received, failed = worker.take_received()
        return KVConnectorTransferResults(
            finished_sending=worker.take_sent(), finished_recving=received, failed_recving=failed
        )

    def get_kv_connector_stats(self) -> HandoverStats | None:
        return None if self._worker is None else self._worker.take_stats()

    def shutdown(self) -> None:
        """Called by vLLM in the last moments of each of the engine's processes."""
        exit_so_when_done()
        if self._worker is not None:
            self._worker.close()

    # -- scheduler side

    def set_xfer_handshake_metadata(self, metadata: Mapping[int, KVConnectorHandshakeMetadata]) -> None:
        ranks = [metadata[rank] for rank in sorted(metadata)]
        endpoints = [rank for rank in ranks if isinstance(rank, RankEndpoint)]
        self._scheduler.set_endpoints([rank.endpoint for rank in endpoints])
        self._ready_file(endpoints).write(self._settings.push_params)

    def on_new_request(self, request: "Request") -> None:
        self._scheduler.on_new_request(request)

    def get_loaded_kv_cache_group_ids(self, request: "Request") -> tuple[int, ...]:
        """A load brings the request's own blocks, of whatever group."""
        return tuple(range(len(self._groups.windows)))

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int, bool]:
        matched = self._scheduler.matched_tokens(request, num_computed_tokens)
        return matched, matched > 0

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        self._scheduler.after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return self._scheduler.take_orders(scheduler_output.num_scheduled_tokens, self._cache().get_block_ids)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        meta = connector_output.kv_connector_worker_meta
        tokens = meta.tokens if isinstance(meta, Continuations) else {}
        self._scheduler.loads_ended(connector_output.finished_recving or set(), tokens)

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[Sequence[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if request.lora_request is not None:
            blocks = self._cache().block_pool.blocks
            self._of_adapters.note(request.lora_request.name, [blocks[i] for ids in block_ids for i in ids])
        return self._scheduler.request_finished(request, block_ids)

    def _cache(self) -> "KVCacheManager":
        assert self._kv_cache_manager is not None, "bound when the scheduler was made"
        return self._kv_cache_manager

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> HandoverStats:
        return HandoverStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> NoVllmMetrics:
        return NoVllmMetrics(*arguments)

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """A graph of the whole model would leave save_kv_layer out: a push would begin when it ends."""
        return bool(extra_config["layerwise"])

    # -- both

    @classmethod
    def _rank_here(cls) -> WorkerSide | None:
        """Returns the rank that runs in this process, if there is one."""
        group = get_kv_transfer_group() if has_kv_transfer_group() else None
        found = [one for one in getattr(group, "sub_connectors", (group,)) if isinstance(one, cls)]
        return found[0]._worker if found else None

    def _bound_orders(self) -> StepOrders:
        orders = self._get_connector_metadata()
        assert isinstance(orders, StepOrders)
        return orders

    def _acting(self) -> WorkerSide:
        assert self._worker is not None, "vLLM registers the KV caches before the first step"
        return self._worker

    def _ready_file(self, ranks: Sequence[RankEndpoint]) -> EngineReadyFile:
        return EngineReadyFile(
            layout=ranks[0].layout,
            kv_dtype=self._kv_dtype(),
            computation=self._computation(),
            block_size_tokens=self._block_size,
            block_bytes=ranks[0].block_bytes,
            total_blocks=self._kv_cache_config.num_blocks // len(self._groups.windows),
            counted_group=self._groups.counted,
            transports=ranks[0].transports,
            endpoints=tuple(rank.endpoint for rank in ranks),
        )

    def _kv_dtype(self) -> str:
        chosen = str(self._vllm_config.cache_config.cache_dtype)
        return self._dtype() if chosen == "auto" else chosen

    def _dtype(self) -> str:
        return str(self._vllm_config.model_config.dtype).removeprefix("torch.")

    def _computation(self) -> str:
        longest = self._vllm_config.model_config.max_model_len
        words = computation_words(self._dtype(), longest, self._settings.options)
        return f"{words}, groups {self._groups.layers}" if self._groups.layers else words

    def _group_of(self) -> dict[str, int]:
        """The group of each layer."""
        groups = enumerate(self._kv_cache_config.kv_cache_groups)
        return {name: number for number, group in groups for name in group.layer_names}

    def _shard(self) -> HeadShard:
        group, model = get_tp_group(), self._vllm_config.model_config
        heads = 1 if model.use_mla else model.get_total_num_kv_heads()
        return HeadShard(heads, group.world_size, group.rank_in_group)
