"""What scheduling knows of a request."""

from dataclasses import dataclass, field
from typing import NamedTuple

from llmserve.core.ids import RequestId, TenantId


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """Times are on the queue's clock, in seconds. deadline: it is evicted when it still waits then.
    choices: sequences that it decodes side by side; tokens of output are those of all together.
    max_output_tokens: the most it may generate; 0: not known. cached_tokens: of the prompt, what the
    place it will get need not compute. priority: as in vLLM, lower is earlier.
    charged: an earlier router has charged its tenant for it, and this one knows.
    expected_output_tokens is filled in by the queue, from what its tenant's requests generated."""

    request_id: RequestId
    tenant: TenantId
    arrived_at: float
    deadline: float
    prompt_tokens: int = 0
    max_output_tokens: int = 0
    priority: int = 0
    cached_tokens: int = 0
    charged: bool = False
    choices: int = 1
    expected_output_tokens: int = field(default=0, compare=False)

    def work_tokens(self, output_tokens: int) -> int:
        """Tokens to compute when it generates this many. Never 0: nothing is for free."""
        return max(1, self.prompt_tokens - self.cached_tokens + output_tokens)

    def context_tokens(self, output_tokens: int) -> int:
        """Tokens whose KV it holds when it has generated this many."""
        return self.prompt_tokens + output_tokens


class Waiting(NamedTuple):
    """A request at its place in a flow: smallest key first, then in the order of arrival."""

    key: float
    sequence: int
    request: QueuedRequest
