"""The KV identity of a request (DESIGN 4): which requests may share blocks."""

from collections.abc import Sequence

from llmserve.core.blocks import Namespace, chain_hashes
from llmserve.core.ids import BlockHash, TenantId
from llmserve.rpc.gen.llmserve.v1.common_pb2 import KvShape


class KvIdentity:
    """tenants_share: the manifest lets all tenants share KV (`security.kv_sharing: cluster`)."""

    def __init__(self, tenants_share: bool) -> None:
        self._tenants_share = tenants_share

    def salt(self, shape: KvShape, tenant: TenantId, client_salt: str = "") -> str:
        """The cache salt for both legs. client_salt is the `cache_salt` field of the client's request."""
        namespace = Namespace(
            model_revision=shape.model_revision,
            kv_dtype=shape.kv_dtype,
            layout=shape.layout,
            block_size_tokens=shape.block_size_tokens,
            computation=shape.computation,
            tensor_parallel=shape.tensor_parallel,
            pipeline_parallel=shape.pipeline_parallel,
            tenant_salt="" if self._tenants_share else tenant,
        )
        return namespace.salt(client_salt)

    def block_hashes(
        self, token_ids: Sequence[int], shape: KvShape, tenant: TenantId, client_salt: str = ""
    ) -> list[BlockHash]:
        """Of the full blocks of a prompt; none while no worker has said how large a block is."""
        if shape.block_size_tokens == 0:
            return []
        salt = self.salt(shape, tenant, client_salt)
        return chain_hashes(token_ids, shape.block_size_tokens, salt)
