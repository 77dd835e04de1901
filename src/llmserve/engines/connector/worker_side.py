"""The acting half of the connector: runs in a vLLM worker process, one per rank.

It registers the rank's KV memory with the transports, keeps the lease table, and executes the
orders of the scheduler side. Called between forward passes; nothing here waits for the network.
"""

from typing import Any

from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.kv_params import PullParams
from llmserve.engines.connector.metadata import Pull, RankEndpoint, StepOrders
from llmserve.engines.connector.push_worker import PushWorker
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.connector.stats import HandoverStats
from llmserve.engines.kv_transfer import HandoverNode, KvLayout, PullJob, PullResult
from llmserve.transfer.select import make_transports

# Longer, and a request that comes meanwhile begins late.
_EMPTY_STEP_SECONDS = 0.003


class WorkerSide:
    """Made once the KV memory exists; `close` is idempotent."""

    def __init__(self, settings: ConnectorSettings, layout: KvLayout) -> None:
        transports, unusable = make_transports(settings.engine_order, settings.host)
        self._layout = layout
        self._node = HandoverNode(
            worker_id=settings.worker_id,
            epoch=settings.epoch,
            transports=transports,
            layout=layout,
            lease_seconds=settings.lease_seconds,
            host=settings.host,
            policy=settings.policy,
            unusable=unusable,
        )
        self.pushes = PushWorker(self._node)
        self._reported: dict[str, Any] = {}
        self._pulled: list[PullResult] = []  # to be told with the next stats

    def endpoint(self) -> RankEndpoint:
        return RankEndpoint(
            endpoint=self._node.endpoint,
            transports=self._node.transports,
            layout=self._layout.geometry.layout,
            block_bytes=sum(self._layout.geometry.block_bytes),
        )

    def execute(self, orders: StepOrders) -> None:
        for grant in orders.grants:
            self._node.server.grant(RequestId(grant.request_id), grant.block_ids, LeaseId(grant.lease_id))
        for watched in orders.watches:
            self._node.client.watch(PullParams.from_params(watched))
        for pull in orders.pulls:
            self._node.client.pull(self._job(pull))
        for released in orders.releases:
            self._node.client.release(PullParams.from_params(released))
        for request_id in orders.cancels:
            self._node.client.cancel(RequestId(request_id))
        self.pushes.execute(orders.push)

    def _job(self, pull: Pull) -> PullJob:
        return PullJob(
            request_id=RequestId(pull.request_id),
            pull_params=PullParams.from_params(pull.pull_params),
            tokens=pull.tokens,
            local_block_ids=pull.local_block_ids,
        )

    def take_sent(self) -> set[str]:
        """Requests whose lease has ended: vLLM may free their blocks."""
        return set(self._node.server.take_ended())

    def wait_for_kv(self) -> None:
        """vLLM goes from step to step as long as a request waits for its KV: on a small machine such empty
        steps take their core from the prefill that is waited for."""
        self._node.wait_for_end(_EMPTY_STEP_SECONDS)

    def take_received(self) -> tuple[set[str], set[str]]:
        """Requests whose load has ended, and those of them that got no valid data."""
        results = [*self._node.client.take_finished(), *self.pushes.take_received()]
        self._pulled += results
        failed: set[str] = {result.request_id for result in results if not result.ok}
        return {result.request_id for result in results}, failed

    def take_stats(self) -> HandoverStats | None:
        """What changed since the last step, or None."""
        status = self._node.server.status()
        data = {
            "leased_blocks": status.leased_blocks,
            "orphan_blocks": status.orphan_blocks,
            "transferred_bytes": status.transferred_bytes,
            "transfer_failures": status.transfer_failures,
            "last_transport": status.last_transport,
        }
        changes = self._node.server.take_changes()
        pulled, self._pulled = self._pulled, []
        if data == self._reported and not changes and not pulled:
            return None
        self._reported = data
        events = [[c.lease_id, c.state.value, c.blocks, c.remaining_seconds] for c in changes]
        pulls = [_told(result) for result in pulled]
        return HandoverStats(data={**data, "lease_events": events, "pulls": pulls})

    def close(self) -> None:
        self._node.close()


def _told(result: PullResult) -> list[Any]:
    return [
        result.request_id,
        result.transport,
        result.bytes,
        result.seconds,
        list(result.fallbacks),
        result.reason,
        result.pushed,
        result.ended_unix,
    ]
