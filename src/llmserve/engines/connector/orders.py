"""What the scheduler side tells the worker side, once per engine step, and what comes back. vLLM pickles it.

HandoverStats goes on, in the scheduler's statistics, to the front process.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from llmserve.core.ids import LeaseId, RequestId, TransferId
from llmserve.core.kv_params import PullParams, PushParams
from llmserve.engines.kv_transfer import Finish, PullJob, PushChunk, ReceiveJob

_SUMMED = ("transferred_bytes", "transfer_failures")


@dataclass(frozen=True, slots=True)
class Grant:
    """Pin the blocks of a finished prefill under a lease."""

    request_id: RequestId
    lease_id: LeaseId
    block_ids: tuple[int, ...]


@dataclass
class PushOrders:
    """Orders about pushes; each list is usually empty.

    At prefill: `announced` transfers whose request has come; `chunks` that this step computes of them; `ends`
    of those that are done; `dropped` are those that will not be done.
    At decode: `expected` pushes of requests that wait for blocks; `receives` of requests that have them;
    `forgotten` pushes that nobody wants any more; `cancels` of receives whose result still has to come.
    """

    announced: list[TransferId] = field(default_factory=list)
    chunks: list[PushChunk] = field(default_factory=list)
    ends: list[tuple[TransferId, Finish]] = field(default_factory=list)
    dropped: list[TransferId] = field(default_factory=list)
    expected: list[PushParams] = field(default_factory=list)
    receives: list[ReceiveJob] = field(default_factory=list)
    forgotten: list[PushParams] = field(default_factory=list)
    cancels: list[RequestId] = field(default_factory=list)


@dataclass
class StepOrders(KVConnectorMetadata):
    """Everything of one step; each list is usually empty.

    watches: requests that wait to be scheduled: keep their leases alive.
    releases: blocks that nobody will fetch (any more): end their leases now.
    cancels: request ids whose pull is no longer wanted; its result still has to come.
    awaits_kv: nothing is computed in this step, and some request waits for its KV.
    """

    grants: list[Grant] = field(default_factory=list)
    pulls: list[PullJob] = field(default_factory=list)
    watches: list[PullParams] = field(default_factory=list)
    releases: list[PullParams] = field(default_factory=list)
    cancels: list[RequestId] = field(default_factory=list)
    push: PushOrders = field(default_factory=PushOrders)
    awaits_kv: bool = False

    @property
    def touches_blocks(self) -> bool:
        """Whether blocks are to be read or written."""
        push = self.push
        return bool(self.grants or self.pulls or push.chunks or push.ends or push.receives)


@dataclass
class Continuations(KVConnectorWorkerMetadata):
    """tokens[request]: what prefill drew for a request whose push has ended. Every rank says the same."""

    tokens: dict[str, tuple[int, ...]]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Continuations":
        assert isinstance(other, Continuations), "of the same connector"
        return Continuations({**other.tokens, **self.tokens})


@dataclass
class RankEndpoint(KVConnectorHandshakeMetadata):
    """Where one rank's hand-over server listens; gathered by vLLM at start."""

    endpoint: str
    transports: tuple[str, ...]
    layout: str
    block_bytes: int


@dataclass
class HandoverStats(KVConnectorStats):
    """Reports the leases and transfers of a rank. They are totals and gauges, so that losing a step loses
    nothing; only lease changes and pulls are increments, and wait for a step that takes them.

    data: leased_blocks, orphan_blocks, transferred_bytes, transfer_failures (int),
    last_transport (str), lease_events (list of [lease_id, state, blocks, remaining_seconds]), pulls (list
    of [request_id, the fields of its HandoverReport])."""

    def aggregate(self, other: KVConnectorStats) -> "HandoverStats":
        """Over tensor-parallel ranks. Each rank pins the same blocks: leases are not added up. A pull is
        reported once for each rank; the last report counts."""
        mine, theirs = self.data, other.data
        summed = {key: mine.get(key, 0) + theirs.get(key, 0) for key in _SUMMED}
        worst = {key: max(mine.get(key, 0), theirs.get(key, 0)) for key in ("leased_blocks", "orphan_blocks")}
        pulls = [*mine.get("pulls", ()), *theirs.get("pulls", ())]
        return HandoverStats(data={**theirs, **mine, **summed, **worst, "pulls": pulls})

    def reduce(self) -> dict[str, int | float]:
        return {key: value for key, value in self.data.items() if isinstance(value, int | float)}

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def is_empty(self) -> bool:
        return not self.data

    def to_dict(self) -> dict[str, Any]:
        return self.data


class NoVllmMetrics(KVConnectorPromMetrics):
    """Records nothing: the worker makes metrics of HandoverStats (metrics/worker.py). With another connector
    beside ours, vLLM demands that each has an object for it."""

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        pass
