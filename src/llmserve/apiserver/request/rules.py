"""Rules that hold for all requests: KV identity, deadlines, and the budget of retries. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmserve.config.schema import Scheduling
from llmserve.core.adapters import BASE_MODEL
from llmserve.core.blocks import BlockChains, Namespace
from llmserve.core.ids import AdapterDigest, BlockHash, TenantId
from llmserve.rpc.gen.llmserve.v1.common_pb2 import KvShape


class KvIdentity:
    """Decides which requests may share KV blocks. tenants_share: all tenants may (`security.kv_sharing:
    cluster`)."""

    def __init__(self, tenants_share: bool) -> None:
        self._tenants_share, self._chains = tenants_share, BlockChains()

    def salt(
        self, shape: KvShape, tenant: TenantId, client_salt: str = "", adapter: AdapterDigest = BASE_MODEL
    ) -> str:
        """Returns the cache salt of both legs. client_salt: the `cache_salt` field of the client's
        request."""
        namespace = Namespace(
            model_revision=shape.model_revision,
            kv_dtype=shape.kv_dtype,
            layout=shape.layout,
            block_size_tokens=shape.block_size_tokens,
            computation=shape.computation,
            tensor_parallel=shape.tensor_parallel,
            pipeline_parallel=shape.pipeline_parallel,
            adapter_digest=adapter,
            tenant_salt="" if self._tenants_share else tenant,
            draft_revision=shape.draft_revision,
        )
        return namespace.salt(client_salt)

    def block_hashes(
        self,
        token_ids: Sequence[int],
        shape: KvShape,
        tenant: TenantId,
        client_salt: str = "",
        adapter: AdapterDigest = BASE_MODEL,
    ) -> list[BlockHash]:
        """Returns the hashes of a prompt's full blocks; none while the block size is unknown."""
        if shape.block_size_tokens == 0:
            return []
        salt = self.salt(shape, tenant, client_salt, adapter)
        return self._chains.hashes(token_ids, shape.block_size_tokens, salt, adapter)


_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StageLimits:
    """Deadlines in seconds. request: of the whole request. admission: of the router's answer, queueing
    included. first_token: from a leg's start to its first output. token: from one output to the next."""

    request: float = 600.0
    admission: float = 90.0
    first_token: float = 120.0
    token: float = 60.0

    @classmethod
    def of(cls, scheduling: Scheduling) -> "StageLimits":
        """The router may take as long as a request may wait in its queue, and as long as it may be away
        itself."""
        waiting = scheduling.queue_timeout_seconds + scheduling.router_patience_seconds
        return cls(
            request=scheduling.request_timeout_seconds,
            admission=waiting + _ANSWER_SECONDS,
            first_token=scheduling.first_token_timeout_seconds,
            token=scheduling.token_timeout_seconds,
        )


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """share: number of retries for each request that starts. burst: number of retries at once, for the loss
    of a worker. tenant_share: part of the burst that one tenant may use when there are several."""

    share: float
    burst: int
    tenant_share: float

    @classmethod
    def of(cls, scheduling: Scheduling) -> "RetryLimits":
        return cls(scheduling.retry_share, scheduling.retry_burst, scheduling.retry_tenant_share)


@dataclass(slots=True)
class _Bucket:
    """Holds `left` of `burst` retries: requests fill it, retries empty it."""

    limits: RetryLimits
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = float(self.limits.burst)

    def fill(self) -> None:
        self.left = min(float(self.limits.burst), self.left + self.limits.share)


class RetryBudget:
    """A bucket for all requests of an apiserver, and one for those of each tenant. The work that failures
    cause stays a share of all work, and a tenant whose requests always fail leaves retries to the others."""

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self._all = _Bucket(limits)
        self._tenants: dict[TenantId, _Bucket] = {}

    def __repr__(self) -> str:
        return f"<RetryBudget {self._all.left:.1f} of {self._limits.burst}>"

    @property
    def left(self) -> int:
        """Number of retries that all tenants together may make now."""
        return int(self._all.left)

    def started(self, tenant: TenantId) -> None:
        """Called when a request begins."""
        self._all.fill()
        self._of(tenant).fill()

    def take(self, tenant: TenantId) -> bool:
        """Takes one retry. Returns False when there is none left."""
        own = self._of(tenant)
        if min(self._all.left, own.left - self._kept_from_one) < 1:
            return False
        self._all.left -= 1
        own.left -= 1
        return True

    def _of(self, tenant: TenantId) -> _Bucket:
        return self._tenants.setdefault(tenant, _Bucket(self._limits))

    @property
    def _kept_from_one(self) -> float:
        """A tenant that is alone may use everything."""
        return (1 - self._limits.tenant_share) * self._limits.burst if len(self._tenants) > 1 else 0.0
