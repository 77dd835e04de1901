"""What the scheduler side tells the worker side about pushes, once per engine step; and what comes back.

Pickled by vLLM. Names and push_params are as they travel in kv_transfer_params.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

from llmserve.engines.kv_transfer import PushChunk


@dataclass(frozen=True, slots=True)
class PushEnd:
    """A prefill is done; its blocks are pinned under the lease of the pull_params. tokens: what it drew."""

    request_id: str
    transfer_id: str
    pull_params: dict[str, Any]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receive:
    """local_block_ids[i] waits for block first_block + i of the prompt."""

    request_id: str
    push_params: dict[str, Any]
    first_block: int
    local_block_ids: tuple[int, ...]


@dataclass
class PushOrders:
    """Of one step; each list is usually empty.

    At prefill. announced: transfers whose request has come. chunks: what this step computes of them. ends:
    those that are done; dropped: those that will not be.
    At decode. expected: requests that wait for blocks. receives: they have them. forgotten: pushes that
    nobody wants any more. cancels: request ids of receives that are not; their result has yet to come.
    """

    announced: list[str] = field(default_factory=list)
    chunks: list[PushChunk] = field(default_factory=list)
    ends: list[PushEnd] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    expected: list[dict[str, Any]] = field(default_factory=list)
    receives: list[Receive] = field(default_factory=list)
    forgotten: list[dict[str, Any]] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)


@dataclass
class Continuations(KVConnectorWorkerMetadata):
    """tokens[request]: what prefill drew of a request whose push has ended. Every rank says the same."""

    tokens: dict[str, tuple[int, ...]]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Continuations":
        assert isinstance(other, Continuations), "of the same connector"
        return Continuations({**other.tokens, **self.tokens})
