"""What a worker reports about its leases: blocks that it holds for another process, for a bounded time."""

from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.ids import LeaseId


class LeaseState(StrEnum):
    GRANTED = "granted"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """One line of a report to the KV manager (kvmanager.proto: LeaseReport)."""

    lease_id: LeaseId
    state: LeaseState
    blocks: int
    remaining_seconds: float = 0.0
