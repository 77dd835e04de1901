"""The composition root of a vLLM worker process that has both connectors, hand-over and store."""

from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1 import multi_connector
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from llmserve.engines.connector.connector import LLMServeConnector
from llmserve.engines.store.spec import StoreConnector

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


class MultiConnector(multi_connector.MultiConnector):
    """vLLM's own, under its name, by which vLLM knows it. The transfers of the store share the budget, the
    matrix and the staging of the hand-over's, which learns first where the KV is."""

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if role is KVConnectorRole.WORKER:
            handover, store = self.sub_connectors
            assert isinstance(handover, LLMServeConnector)
            assert isinstance(store, StoreConnector)
            store.share(handover.shared)
