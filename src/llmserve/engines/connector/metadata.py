"""What the scheduler side tells the worker side, once per engine step (pickled by vLLM)."""

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
)

from llmserve.engines.connector.push_orders import PushOrders


@dataclass(frozen=True, slots=True)
class Grant:
    """Pin the blocks of a finished prefill under a lease."""

    request_id: str
    lease_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """Copies these tokens of a prompt into local_block_ids, the first of which is that of the first token."""

    request_id: str
    pull_params: dict[str, Any]
    tokens: range
    local_block_ids: tuple[int, ...]


@dataclass
class StepOrders(KVConnectorMetadata):
    """Everything of one step; each list is usually empty.

    watches: pull_params of requests that wait to be scheduled: keep their leases alive.
    releases: pull_params that will not be fetched (any more): end their leases now.
    cancels: request ids whose pull is no longer wanted; its result still has to come.
    push: the same for requests that are pushed.
    awaits_kv: nothing is computed in this step, and some request waits for its KV.
    """

    grants: list[Grant] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    watches: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    push: PushOrders = field(default_factory=PushOrders)
    awaits_kv: bool = False


@dataclass
class RankEndpoint(KVConnectorHandshakeMetadata):
    """Where one rank's hand-over server listens; gathered by vLLM at start."""

    endpoint: str
    transports: tuple[str, ...]
    layout: str
    block_bytes: int
