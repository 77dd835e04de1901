"""The acting half of the connector: runs in a vLLM worker process, one per rank.

It registers the rank's KV memory with the transports, keeps the lease table, and executes the
orders of the scheduler side. Called between forward passes; nothing here waits for the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

from llmserve.engines.connector.orders import (
    Continuations,
    HandoverStats,
    PushOrders,
    RankEndpoint,
    StepOrders,
)
from llmserve.engines.connector.resting import EMPTY_STEP_SECONDS
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.connector.stream_order import StreamOrder
from llmserve.engines.kv_transfer import HandoverNode, KvLayout, PullResult
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.transfer.base import Region
from llmserve.transfer.devices import REACHED, HostCopies, Mark, Staging
from llmserve.transfer.devices.cuda import CudaCopies
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.select import make_transports


def staging_of(regions: Sequence[Region]) -> Staging | None:
    """Returns the staging for the GPU whose memory the KV is in, and None for host memory. vLLM gives each
    rank one GPU. Errors: TransportUnavailable."""
    memory = regions[0].memory
    return None if memory.device is None else Staging(CudaCopies(memory.device))


class WorkerSide:
    """Made once the KV memory exists; `close` is idempotent."""

    def __init__(self, settings: ConnectorSettings, layout: KvLayout, shared: SharedTransfers) -> None:
        """shared: with a staging when the KV is in the memory of a device."""
        staging = shared.staging
        credentials = Credentials.read(CallerRole.WORKER, settings.worker_id)
        transports, unusable = make_transports(
            settings.engine_order, settings.host, staging=staging, credentials=credentials
        )
        self._layout, self._shared = layout, shared
        self._stream = StreamOrder(staging.copies if staging else HostCopies())
        self._node = HandoverNode(
            worker_id=settings.worker_id,
            epoch=settings.epoch,
            transports=transports,
            layout=layout,
            lease_seconds=settings.lease_seconds,
            host=settings.host,
            policy=settings.policy,
            unusable=unusable,
            shared=shared,
            credentials=credentials,
        )
        self._continued: dict[str, tuple[int, ...]] = {}  # for the results of this step
        self._reported: dict[str, Any] = {}
        self._pulled: list[PullResult] = []  # for the next stats
        self._rests = True  # in a step
        self.took_change = False  # in the last step

    def endpoint(self) -> RankEndpoint:
        return RankEndpoint(
            endpoint=self._node.endpoint,
            transports=self._node.transports,
            layout=self._layout.geometry.layout,
            block_bytes=sum(self._layout.geometry.block_bytes),
        )

    def execute(self, orders: StepOrders) -> None:
        """Before the step computes."""
        server, client = self._node.server, self._node.client
        mark = self._stream.before_step() if orders.touches_blocks else REACHED
        for grant in orders.grants:
            server.grant(grant.request_id, grant.block_ids, grant.lease_id, mark)
        for watched in orders.watches:
            client.watch(watched)
        for pull in orders.pulls:
            client.pull(pull, mark)
        for released in orders.releases:
            client.release(released)
        for request_id in orders.cancels:
            client.cancel(request_id)
        self._execute_sends(orders.push, mark)
        self._execute_receives(orders.push, mark)

    def _execute_sends(self, orders: PushOrders, mark: Mark) -> None:
        """After the leases of `ends` have been granted."""
        sender = self._node.sender
        for transfer_id in orders.announced:
            sender.announce(transfer_id)
        if orders.chunks:
            sender.begin_step(orders.chunks, mark)
        for transfer_id, finish in orders.ends:
            sender.finish(transfer_id, finish, mark)
        for transfer_id in orders.dropped:
            sender.drop(transfer_id)

    def _execute_receives(self, orders: PushOrders, mark: Mark) -> None:
        receiver = self._node.receiver
        for expected in orders.expected:
            receiver.expect(expected)
        for job in orders.receives:
            receiver.receive(job, mark)
        for forgotten in orders.forgotten:
            receiver.forget(forgotten)
        for request_id in orders.cancels:
            receiver.cancel(request_id)

    def computed(self, layer: int, orders: PushOrders) -> None:
        """The step has launched a layer."""
        if orders.chunks:
            self._node.sender.computed(layer, orders.chunks, self._stream.after_layer())

    def take_sent(self) -> set[str]:
        """Requests whose lease has ended: vLLM may free their blocks."""
        ended: set[str] = set(self._node.server.take_ended())
        self.took_change |= bool(ended)
        return ended

    @property
    def awaits_change(self) -> bool:
        """Says whether KV is to arrive here, or a lease to end, and no store has a part in it: nothing
        announces that its KV has come."""
        return self._node.awaits_change and not self._shared.with_store

    def rest_between_steps(self, wake: Callable[[], object]) -> None:
        """The engine rests between its steps from now on, instead of in them. wake: called on any thread when
        KV has arrived, or a lease was released."""
        self._rests = False
        self._node.on_change(wake)

    def wait_for_kv(self) -> None:
        """vLLM goes from step to step as long as a request waits for its KV: on a small machine such empty
        steps take their core from the prefill that is waited for."""
        if self._rests:
            self._node.wait_for_change(EMPTY_STEP_SECONDS)

    def take_received(self) -> tuple[set[str], set[str]]:
        """Requests whose load has ended, and those of them that got no valid data."""
        pushed = self._node.receiver.take_finished()
        self._continued.update({result.request_id: result.tokens for result in pushed if result.tokens})
        results = [*self._node.client.take_finished(), *pushed]
        self.took_change = bool(results)
        self._pulled += results
        failed: set[str] = {result.request_id for result in results if not result.ok}
        return {result.request_id for result in results}, failed

    def take_continuations(self) -> Continuations | None:
        """For the results taken last."""
        continued, self._continued = self._continued, {}
        return Continuations(continued) if continued else None

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
        pulls = [[result.request_id, *astuple(result.report)] for result in pulled]
        return HandoverStats(data={**data, "lease_events": events, "pulls": pulls})

    def close(self) -> None:
        self._node.close()
