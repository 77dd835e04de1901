"""What binds eviction besides the order of the policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmserve.core.ids import BlockHash, TenantId

# Whose blocks are when an earlier process has stored them: they have no hot set.
NOBODY = TenantId("")


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """hot_keep_seconds: how long a block that was just used stays, whoever wants its room.
    tenant_hotset_bytes: what each tenant keeps whatever the others do.
    tenant_quota_bytes: what a tenant may hold at most; a tenant that is not named has no limit."""

    hot_keep_seconds: float = 0.0
    tenant_hotset_bytes: int = 0
    tenant_quota_bytes: Mapping[TenantId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Victim:
    """tenant: whose it was. proven: worth a write to the tier below."""

    key: BlockHash
    parent: BlockHash | None
    size_bytes: int
    tenant: TenantId
    proven: bool


class Added(StrEnum):
    HELD = "held"  # it is now
    PRESENT = "present"  # it was before
    NO_ROOM = "no_room"  # make_room did not find enough, or was not asked
