"""Who asks, and what it may do."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from llmserve.config.schema.callers import CallerRights
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits


class AccessScope(StrEnum):
    """What a credential is good for. INFERENCE: requests that models answer, and what became of them. READ:
    status, metrics, and the records of its tenant's requests. ADMIN: everything, also what changes the
    cluster or is about all tenants."""

    INFERENCE = "inference"
    READ = "read"
    ADMIN = "admin"


ALL_SCOPES = frozenset(AccessScope)
CLIENT_SCOPES = frozenset({AccessScope.INFERENCE, AccessScope.READ})


def scopes_of(names: Iterable[str], *, admin: bool = False) -> frozenset[AccessScope]:
    """Returns the scopes of these names; those of an admin include all. Errors: ValueError."""
    scopes = frozenset(map(AccessScope, names))
    return ALL_SCOPES if admin or AccessScope.ADMIN in scopes else scopes


def only(names: Iterable[str] | None) -> frozenset[str] | None:
    """Returns the names that a credential is limited to; None: it is not."""
    return None if names is None else frozenset(names)


@dataclass(frozen=True, slots=True)
class Caller:
    """models, adapters: names of those that it may use; None: all. background: its requests are those of a
    batch. max_priority: how many steps its requests may be moved ahead; None: any number. limits: those of
    its key. key_id: names the credential in logs; it is no secret. key_digest: by which a key is known again
    later; None: there was no key, or it was a token."""

    tenant: TenantId = DEFAULT_TENANT
    scopes: frozenset[AccessScope] = frozenset()
    models: frozenset[str] | None = None
    adapters: frozenset[str] | None = None
    background: bool = False
    max_priority: int | None = None
    limits: KeyLimits = NO_LIMITS
    key_id: str = field(default="", compare=False)
    key_digest: str | None = field(default=None, compare=False, repr=False)

    @property
    def admin(self) -> bool:
        return AccessScope.ADMIN in self.scopes

    def may_use_model(self, name: str) -> bool:
        """Returns whether it may use the model of this name. The others are unknown to it."""
        return self.models is None or name in self.models

    def may_use_adapter(self, name: str) -> bool:
        """Returns whether it may use the adapter of this name, if it may use its model."""
        return self.adapters is None or name in self.adapters


def caller_with(
    rights: CallerRights, tenant: TenantId, key_id: str, *, counted_as: str = "", admin: bool = False
) -> Caller:
    """Returns who has these rights of the manifest. key_id: as that of a Caller. counted_as: the name under
    which its limits are counted in the whole cluster; empty: key_id."""
    return Caller(
        tenant,
        scopes_of(rights.scopes, admin=admin),
        only(rights.models),
        only(rights.adapters),
        max_priority=rights.max_priority,
        limits=KeyLimits(
            counted_as or key_id,
            rights.max_requests_per_second,
            rights.max_tokens_per_second,
            rights.max_requests_in_flight,
        ),
        key_id=key_id,
    )


NOBODY = Caller()
EVERYBODY = Caller(scopes=CLIENT_SCOPES)
LOCAL_ADMIN = Caller(scopes=ALL_SCOPES)
