"""The words of a lease: blocks that one process holds for another, for a bounded time.

kvstore/leases.py is the table that grants and ends them.
"""

from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.ids import LeaseId, RequestId


class LeaseState(StrEnum):
    GRANTED = "granted"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Lease:
    """epoch fences: it is that of the incarnation that granted the lease, and a message that names
    another epoch is refused. expires_at is on the granter's monotonic clock."""

    lease_id: LeaseId
    request_id: RequestId
    epoch: int
    block_ids: tuple[int, ...]
    expires_at: float


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """One line of a report to the KV manager (kvmanager.proto: LeaseReport)."""

    lease_id: LeaseId
    state: LeaseState
    blocks: int
    remaining_seconds: float = 0.0
