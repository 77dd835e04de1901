"""What scheduling knows of a request."""

from dataclasses import dataclass
from typing import NamedTuple

from llmserve.core.ids import RequestId, TenantId


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """Times are on the queue's clock, in seconds. deadline: it is evicted when it still waits then.
    max_output_tokens: the most it may generate."""

    request_id: RequestId
    tenant: TenantId
    arrived_at: float
    deadline: float
    prompt_tokens: int = 0
    max_output_tokens: int = 0
    priority: int = 0


class Waiting(NamedTuple):
    """A request at its place in a flow: smallest key first, then in the order of arrival."""

    key: float
    sequence: int
    request: QueuedRequest
