"""The acting half of pushes: part of the worker side, in each vLLM worker process."""

from llmserve.core.ids import RequestId, TransferId
from llmserve.core.kv_params import PullParams, PushParams
from llmserve.engines.connector.push_orders import Continuations, PushEnd, PushOrders, Receive
from llmserve.engines.kv_transfer import Finish, HandoverNode, PullResult, ReceiveJob


class PushWorker:
    """Nothing here waits for the network."""

    def __init__(self, node: HandoverNode) -> None:
        self._sender, self._receiver = node.sender, node.receiver
        self._continued: dict[str, tuple[int, ...]] = {}  # to be told with the results of this step

    def execute(self, orders: PushOrders) -> None:
        """Before the step computes; leases of `ends` have been granted."""
        for transfer_id in orders.announced:
            self._sender.announce(TransferId(transfer_id))
        if orders.chunks:
            self._sender.begin_step(orders.chunks)
        for end in orders.ends:
            self._sender.finish(TransferId(end.transfer_id), _finish(end))
        for transfer_id in orders.dropped:
            self._sender.drop(TransferId(transfer_id))
        for expected in orders.expected:
            self._receiver.expect(PushParams.from_params(expected))
        for receive in orders.receives:
            self._receiver.receive(_job(receive))
        for forgotten in orders.forgotten:
            self._receiver.forget(PushParams.from_params(forgotten))
        for request_id in orders.cancels:
            self._receiver.cancel(RequestId(request_id))

    def computed(self, layer: int, orders: PushOrders) -> None:
        """The step has computed a layer."""
        if orders.chunks:
            self._sender.computed(layer, orders.chunks)

    def take_received(self) -> list[PullResult]:
        results = self._receiver.take_finished()
        self._continued.update({result.request_id: result.tokens for result in results if result.tokens})
        return results

    def take_continuations(self) -> Continuations | None:
        """For the results taken last."""
        continued, self._continued = self._continued, {}
        return Continuations(continued) if continued else None


def _finish(end: PushEnd) -> Finish:
    return Finish(RequestId(end.request_id), PullParams.from_params(end.pull_params), end.tokens)


def _job(receive: Receive) -> ReceiveJob:
    push_params = PushParams.from_params(receive.push_params)
    return ReceiveJob(
        RequestId(receive.request_id), push_params, receive.first_block, receive.local_block_ids
    )
