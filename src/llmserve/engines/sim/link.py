"""How simulated engines reach each other's KV.

`HandoverLink` (handover_link.py), over the real side channel and tcp, is what workers use.
`LocalFabric` (fabric.py) serves simulations of many engines in one process, where sockets would
only cost time.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmserve.core.ids import LeaseId, RequestId, TransferId
from llmserve.core.kv_params import PullParams, PushParams
from llmserve.core.lease import LeaseChange
from llmserve.core.request import KvPeer, PairStatus
from llmserve.engines.kv_transfer import Finish, PullResult, PushChunk

Ticket = PullParams | PushParams  # what a request can have its KV for: to be pulled, or to be pushed


@dataclass(slots=True)
class LinkCounters:
    leased_blocks: int = 0
    orphan_blocks: int = 0
    transferred_bytes: int = 0
    transfer_failures: int = 0
    last_transport: str = ""


class KvLink(Protocol):
    """One engine's end. No method blocks for long; none is called after close. `changed` is set when
    take_ended or take_pulled has something new."""

    endpoint: str
    transports: tuple[str, ...]
    changed: asyncio.Event

    def grant(self, request_id: RequestId, block_ids: Sequence[int]) -> LeaseId:
        """Blocks that a peer may read until the lease ends."""

    def take_ended(self) -> Sequence[RequestId]:
        """Requests whose lease has ended since the last call: their blocks can be freed."""

    def pull(self, request_id: RequestId, ticket: Ticket, tokens: range, local: Sequence[int]) -> None:
        """Starts to copy tokens of the ticket's prompt into local blocks, the first of which is that of the
        first token, or to wait until they are pushed; one PullResult follows, whatever happens."""

    def take_pulled(self) -> Sequence[PullResult]: ...

    def cancel(self, request_id: RequestId) -> None:
        """The data is no longer wanted; the PullResult still comes."""

    def watch(self, ticket: Ticket) -> None:
        """Keeps a lease alive until its blocks are pulled or released."""

    def release(self, ticket: Ticket) -> None:
        """The blocks of a ticket will not be fetched. In the background, never fails."""

    def announce(self, transfer_id: TransferId) -> None:
        """A request came whose KV is to be pushed; finish or drop follows."""

    def computed(self, chunk: PushChunk) -> None:
        """Its content is in memory."""

    def finish(self, transfer_id: TransferId, finish: Finish) -> None:
        """All of the prompt is in memory, under a lease."""

    def drop(self, transfer_id: TransferId) -> None:
        """It will not be handed over."""

    def set_peers(self, peers: Sequence[KvPeer]) -> None:
        """All engines that tickets may come from."""

    def pairs(self) -> Sequence[PairStatus]:
        """The matrix of ways to them."""

    def take_changes(self) -> Sequence[LeaseChange]:
        """Leases granted and ended since the last call, for the report to the KV manager."""

    def counters(self) -> LinkCounters: ...

    def close(self) -> None:
        """Idempotent."""
