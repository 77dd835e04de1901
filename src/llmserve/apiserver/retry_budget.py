"""How many requests may be placed again after a worker failed them."""

from dataclasses import dataclass, field

from llmserve.core.ids import TenantId


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """share: retries for each request that starts. burst: retries at once, for the loss of a worker.
    tenant_share: the part of the burst that one tenant may use when there are several."""

    share: float = 0.2
    burst: int = 100
    tenant_share: float = 0.5


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
    """A bucket for all requests and one for those of each tenant: the work that failures cause stays a share
    of the work there is, and a tenant whose requests always fail leaves retries to the others. Of one
    apiserver; pure."""

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self._all = _Bucket(limits)
        self._tenants: dict[TenantId, _Bucket] = {}

    def __repr__(self) -> str:
        return f"<RetryBudget {self._all.left:.1f} of {self._limits.burst}>"

    @property
    def left(self) -> int:
        """Retries that may be made now, of all tenants together."""
        return int(self._all.left)

    def started(self, tenant: TenantId) -> None:
        """A request began."""
        self._all.fill()
        self._of(tenant).fill()

    def take(self, tenant: TenantId) -> bool:
        """One retry; False: not now."""
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
