"""Our store with a switch for each request, so that one engine can run with and without it in turns."""

from collections.abc import Collection

from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
)

from llmserve.engines.store.manager import StoreManager
from llmserve.engines.store.spec import StoreSpec
from llmserve.engines.store.words import StoreSlots

WITHOUT_STORE = {"bench_without_store": True}


class SwitchedManager(StoreManager):
    """For a request with WITHOUT_STORE there is no store: nothing is asked, loaded or kept."""

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        return LookupResult.MISS if _is_off(req_context) else super().lookup(key, req_context)

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        if _is_off(req_context):
            return PrepareStoreOutput([], StoreSlots(), [])
        return super().prepare_store(keys, req_context)


class SwitchedSpec(StoreSpec):
    def get_manager(self) -> OffloadingManager:
        manager = super().get_manager()
        assert isinstance(manager, StoreManager)
        manager.__class__ = SwitchedManager
        return manager


def _is_off(context: ReqContext) -> bool:
    return bool((context.kv_transfer_params or {}).get("bench_without_store"))
