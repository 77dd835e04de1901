"""The links between simulated engines, over which they exchange KV.

`HandoverLink` has the real side channel, leases, and the manifest's transports. Tests have a link of their
own for engines of one process (tests/unit/engines/sim/local_fabric.py), where sockets would only cost time.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId, TransferId
from llmserve.core.kv_params import BlockTable, PullParams, PushParams, addresses_for
from llmserve.core.request import EngineLoad, KvPeer, LeaseChange
from llmserve.core.tasks import TaskOwner
from llmserve.engines.kv_transfer import (
    Finish,
    HandoverNode,
    KvGeometry,
    KvLayout,
    KvPart,
    PullJob,
    PullResult,
    PushChunk,
    ReceiveJob,
)
from llmserve.engines.sim.memory import TOKEN_BYTES, KvMemory
from llmserve.engines.spec import EngineSpec, transfer_policy
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.transfer.select import make_transports

KvSource = PullParams | PushParams  # for KV that is pulled, or that is pushed


class SimLink(Protocol):
    """One engine's end. No method blocks for long, and none is called after close. `changed` is set when
    take_ended or take_pulled has something new."""

    endpoint: str
    transports: tuple[str, ...]
    changed: asyncio.Event

    def grant(self, request_id: RequestId, block_ids: Sequence[int]) -> LeaseId:
        """Leases blocks, which a peer may read until the lease ends."""

    def take_ended(self) -> Sequence[RequestId]:
        """Returns the requests whose lease has ended since the last call. Their blocks can be freed."""

    def pull(self, request_id: RequestId, ticket: KvSource, tokens: range, local: Sequence[int]) -> None:
        """Starts to copy tokens of the ticket's prompt into local blocks, or to wait until they are pushed.
        The first block is that of the first token. Exactly one PullResult follows."""

    def take_pulled(self) -> Sequence[PullResult]: ...

    def cancel(self, request_id: RequestId) -> None:
        """Gives up a pull. Its PullResult still comes."""

    def watch(self, ticket: KvSource) -> None:
        """Keeps a lease alive until its blocks are pulled or released."""

    def release(self, ticket: KvSource) -> None:
        """Ends the lease of a ticket whose blocks will not be fetched. Works in the background and never
        fails."""

    def announce(self, transfer_id: TransferId) -> None:
        """Announces a request whose KV is to be pushed. `finish` or `drop` follows."""

    def computed(self, chunk: PushChunk) -> None:
        """Pushes a chunk, whose content is in memory."""

    def finish(self, transfer_id: TransferId, finish: Finish) -> None:
        """Ends a push: the whole prompt is in memory, under a lease."""

    def drop(self, transfer_id: TransferId) -> None:
        """Ends a push that will not be finished."""

    def set_peers(self, peers: Sequence[KvPeer]) -> None:
        """Sets all engines from which tickets may come."""

    def take_changes(self) -> Sequence[LeaseChange]:
        """Returns leases granted and ended since the last call, for the report to the KV manager."""

    def load(self) -> EngineLoad:
        """Returns what leases hold, and what was transferred. The figures of the engine itself are 0."""

    def close(self) -> None:
        """Idempotent."""


_LEASE_POLL_SECONDS = 0.02


async def open_handover_link(spec: EngineSpec, memory: KvMemory) -> "HandoverLink":
    """Opens a HandoverLink; SimEngine takes this as open_link. Errors: TransferError."""
    geometry = KvGeometry(
        block_bytes=(memory.block_bytes,),
        block_size_tokens=memory.block_size_tokens,
        kv_dtype="sim",
        layout="sim",
        model=spec.kv_identity,
        parts=(KvPart(rows=1, group_tokens=1, group_bytes=TOKEN_BYTES),),
    )
    layout = KvLayout((memory.region(),), geometry)
    credentials = Credentials.read(CallerRole.WORKER, spec.worker_id)
    transports, unusable = make_transports(
        spec.transfer.engine_order, spec.handover_host, credentials=credentials
    )
    return HandoverLink(
        HandoverNode(
            worker_id=spec.worker_id,
            epoch=spec.epoch,
            transports=transports,
            unusable=unusable,
            layout=layout,
            lease_seconds=spec.transfer.lease_seconds,
            host=spec.handover_host,
            policy=transfer_policy(spec),
            credentials=credentials,
        ),
        memory.block_size_tokens,
    )


class HandoverLink:
    """A link over a HandoverNode, which works on a thread of its own. It tells of everything but leases that
    expire, so while there are leases `changed` is also set by polling. Made on the loop of its engine."""

    def __init__(self, node: HandoverNode, block_size_tokens: int) -> None:
        self.endpoint = node.endpoint
        self.transports: tuple[str, ...] = node.transports
        self.changed = asyncio.Event()
        self._node = node
        self._block_size_tokens = block_size_tokens
        self._failed: list[PullResult] = []
        self._tasks = TaskOwner("sim-link")
        self._poller: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        node.on_change(lambda: loop.call_soon_threadsafe(self.changed.set))

    def grant(self, request_id: RequestId, block_ids: Sequence[int]) -> LeaseId:
        lease_id = self._node.server.grant(request_id, block_ids)
        self._start_polling()
        return lease_id

    def take_ended(self) -> Sequence[RequestId]:
        return tuple(self._node.server.take_ended())

    def pull(self, request_id: RequestId, ticket: KvSource, tokens: range, local: Sequence[int]) -> None:
        try:
            self._start(request_id, ticket, tokens, tuple(local))
        except TransferError as error:
            self._failed.append(PullResult(request_id, error.message))
            self.changed.set()

    def _start(self, request_id: RequestId, ticket: KvSource, tokens: range, local: tuple[int, ...]) -> None:
        blocks = BlockTable(local, (tokens.start // self._block_size_tokens,))
        if isinstance(ticket, PushParams):
            self._node.receiver.receive(ReceiveJob(request_id, ticket, blocks))
        else:
            self._node.client.pull(PullJob(request_id, ticket, tokens, blocks))

    def take_pulled(self) -> Sequence[PullResult]:
        failed, self._failed = self._failed, []
        return [*failed, *self._node.client.take_finished(), *self._node.receiver.take_finished()]

    def cancel(self, request_id: RequestId) -> None:
        self._node.client.cancel(request_id)
        self._node.receiver.cancel(request_id)

    def watch(self, ticket: KvSource) -> None:
        if isinstance(ticket, PushParams):
            self._node.receiver.expect(ticket)
        else:
            self._node.client.watch(ticket)

    def release(self, ticket: KvSource) -> None:
        if isinstance(ticket, PushParams):
            self._node.receiver.forget(ticket)
        else:
            self._node.client.release(ticket)

    def announce(self, transfer_id: TransferId) -> None:
        self._node.sender.announce(transfer_id)

    def computed(self, chunk: PushChunk) -> None:
        self._node.sender.begin_step([chunk])
        self._node.sender.computed(0, [chunk])

    def finish(self, transfer_id: TransferId, finish: Finish) -> None:
        self._node.sender.finish(transfer_id, finish)

    def drop(self, transfer_id: TransferId) -> None:
        self._node.sender.drop(transfer_id)

    def set_peers(self, peers: Sequence[KvPeer]) -> None:
        self._node.client.set_peers([address for peer in peers for address in addresses_for(peer, 0, 1)])

    def take_changes(self) -> Sequence[LeaseChange]:
        return self._node.server.take_changes()

    def load(self) -> EngineLoad:
        status = self._node.server.status()
        return EngineLoad(
            leased_blocks=status.leased_blocks,
            orphan_blocks=status.orphan_blocks,
            transferred_bytes=status.transferred_bytes,
            transfer_failures=status.transfer_failures,
            last_transport=status.last_transport,
            pairs=self._node.client.pairs(),
        )

    def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
        self._node.close()

    # -- polling

    def _start_polling(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = self._tasks.spawn("poll", self._poll())

    async def _poll(self) -> None:
        """Sets `changed` regularly. No await lies between the last check and the end, so that _start_polling
        is right."""
        while self._node.server.leased_count:
            await asyncio.sleep(_LEASE_POLL_SECONDS)
            self.changed.set()
