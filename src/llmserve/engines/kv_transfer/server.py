"""The granting end: leases on blocks of this process, and the side channel through which readers
check, renew and release them.

A reader that sends garbage loses its connection, nothing else.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmserve.core.clock import Clock
from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.logs import ScarceWarnings
from llmserve.core.request import LeaseChange, PairStatus
from llmserve.engines.kv_transfer.channel import Channel, listen, open_accepted
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.leases import BlockLeases
from llmserve.engines.kv_transfer.protocol import (
    AnnounceProbe,
    Answer,
    AskDigest,
    AskStatus,
    BeginRead,
    DigestIs,
    Done,
    HandoverStatus,
    Hello,
    LeaseIs,
    ReleaseLease,
    RenewLease,
    RequestRefusal,
    SetPeers,
    Welcome,
    decode_request,
)
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.rpc.wires.accepting import UnprovenConnections, accept_all, address_of
from llmserve.transfer.devices import REACHED, Mark
from llmserve.transfer.engine.pair import PROBE_SECONDS

_log = logging.getLogger(__name__)
_CONNECT_SECONDS = 2.0  # for the transports of a peer, after its Hello
_CLOSE_SECONDS = 2.0
_MAX_CONNECTIONS = 1024

# (connection, request of the kind it is registered for) -> answer. Errors: TransferError
Handlers = Mapping[type, Callable[[int, Any], Answer]]


class HandoverServer:
    """Methods without underscore may be called from any thread and never wait for the network."""

    def __init__(
        self,
        engine: RankEngine,
        worker_id: WorkerId,
        epoch: int,
        lease_seconds: float,
        clock: Clock,
        client: HandoverClient,
        host: str = "127.0.0.1",
    ) -> None:
        """Listens at once. client: the fetching end of this process, for status and peers.
        Errors: TransferError when the host cannot be bound."""
        self._engine = engine
        self._client = client
        self._worker_id = worker_id
        self._lock = threading.Lock()
        self._table = BlockLeases(epoch, lease_seconds, clock)
        self._handlers: dict[type, Callable[[int, Any], Answer]] = {
            Hello: self._hello,
            AnnounceProbe: self._expect_probe,
            BeginRead: self._begin,
            RenewLease: self._renew,
            ReleaseLease: self._release,
            AskDigest: self._digest,
            SetPeers: self._set_peers,
            AskStatus: self._status,
        }
        self._channels: dict[int, Channel] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._warnings = ScarceWarnings(_log)
        self._unproven = UnprovenConnections[asyncio.Task[None]]()
        self._accepted = 0
        listener, self.endpoint = listen(host)
        self._accepting = engine.call(self._start(listener))

    def add(self, handlers: Handlers) -> None:
        """Further requests that it answers; before any peer knows of this server. They run on the loop."""
        self._handlers.update(handlers)

    # -- the engine

    def grant(
        self,
        request_id: RequestId,
        block_ids: Sequence[int],
        lease_id: LeaseId | None = None,
        written: Mark = REACHED,
    ) -> LeaseId:
        """Pins blocks until `take_ended` names the request. lease_id: the one the pull_params carries,
        when every rank must know it beforehand. written: readers begin once it is reached. Errors:
        InvalidRequest."""
        with self._lock:
            return self._table.grant(request_id, block_ids, lease_id, written).lease_id

    def withdraw(self, request_id: RequestId) -> bool:
        """Ends the lease of a request from this side. False: it held none that was open."""
        with self._lock:
            withdrawn = self._table.withdraw(request_id)
        if withdrawn:
            self._engine.note_change()
        return withdrawn

    def renew(self, lease_id: LeaseId) -> bool:
        """Lets a lease run for its whole length from now. False: it does not hold (any more)."""
        with self._lock:
            return self._table.renew(lease_id, self._table.epoch) is LeaseAnswer.VALID

    def take_ended(self) -> frozenset[RequestId]:
        """Requests whose lease was released or has expired, each once: free their blocks now."""
        with self._lock:
            return self._table.take_ended()

    @property
    def leased_count(self) -> int:
        """Requests whose blocks are pinned: open leases, and ended ones that were not taken."""
        with self._lock:
            return self._table.open_leases + self._table.untaken_requests

    def take_changes(self) -> list[LeaseChange]:
        """What happened to leases since the last call, in order."""
        with self._lock:
            return self._table.take_changes()

    def status(self, pairs: Sequence[PairStatus] = ()) -> HandoverStatus:
        counters = self._engine.counters
        with self._lock:
            table = self._table
            table.expire()
            return HandoverStatus(
                worker_id=self._worker_id,
                epoch=table.epoch,
                open_leases=table.open_leases,
                leased_blocks=table.leased_blocks,
                orphan_blocks=table.orphan_blocks,
                granted_leases=table.counters.granted,
                released_leases=table.counters.released,
                expired_leases=table.counters.expired,
                transferred_bytes=counters.transferred_bytes,
                transfer_failures=counters.transfer_failures,
                last_transport=counters.last_transport,
                transports=tuple(self._engine.transports),
                pairs=tuple(pairs),
            )

    async def _start(self, listener: socket.socket) -> asyncio.Task[None]:
        return self._engine.spawn("side-channel-accept", accept_all(listener, self._accept))

    def hang_up(self) -> None:
        """Closes all connections; peers may connect again. On the loop."""
        for task in self._unproven:
            task.cancel()
        for channel in self._channels.values():
            channel.close()

    def close(self) -> None:
        """Readers lose their connections. Idempotent; before the engine's `close`."""
        if not self._engine.closed:
            self._engine.call(self._aclose())

    # -- requests, on the loop

    def _hello(self, connection: int, request: Hello) -> Answer:
        mine = self._engine.layout.geometry
        if obstacle := mine.obstacle(request.geometry):
            return RequestRefusal(f"the KV caches do not fit: {obstacle}")
        self._engine.expect(connection, "", _CONNECT_SECONDS)
        descriptions = self._engine.descriptions
        return Welcome(self._worker_id, self._table.epoch, descriptions, self._engine.probe.info, mine)

    def _expect_probe(self, connection: int, _: AnnounceProbe) -> Answer:
        self._engine.expect(connection, "probe", PROBE_SECONDS)
        return Done()

    def _begin(self, connection: int, request: BeginRead) -> Answer:
        try:
            with self._lock:
                answer = self._table.begin(request.lease_id, request.epoch)
        except TransferError as error:
            _log.error("lease %s has ended: its blocks were not written: %s", request.lease_id, error.message)
            self._engine.note_change()
            return LeaseIs(LeaseAnswer.ENDED)
        if answer in (LeaseAnswer.VALID, LeaseAnswer.UNKNOWN):
            self._engine.expect(connection, request.lease_id, self._table.lease_seconds)
        return LeaseIs(answer)

    def _renew(self, _: int, request: RenewLease) -> Answer:
        with self._lock:
            return LeaseIs(self._table.renew(request.lease_id, request.epoch))

    def _release(self, connection: int, request: ReleaseLease) -> Answer:
        with self._lock:
            answer = self._table.release(request.lease_id, request.epoch, request.reader, request.readers)
        self._engine.dismiss(connection, request.lease_id)
        self._engine.note_change()
        return LeaseIs(answer)

    def _digest(self, _: int, request: AskDigest) -> Answer:
        """Readers ask before their own transport has looked at what they want to read."""
        try:
            return DigestIs(self._engine.digest(request.spans()))
        except TransferError as error:
            return RequestRefusal(error.message)

    def _set_peers(self, _: int, request: SetPeers) -> Answer:
        self._client.set_peers(request.peers)
        return Done()

    def _status(self, _: int, __: AskStatus) -> Answer:
        return self.status(self._client.pairs())

    # -- connections, on the loop

    def _accept(self, connection: socket.socket) -> None:
        if len(self._serving) >= _MAX_CONNECTIONS:
            connection.close()
            return
        task = self._engine.spawn("side-channel", self._serve(connection))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(self._unproven.remove)
        dropped = self._unproven.add(task, address_of(connection))
        if dropped is not None:
            dropped.cancel()

    async def _serve(self, accepted: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None, "spawned"
        try:
            channel = await open_accepted(accepted, self._engine.credentials)
            self._unproven.remove(task)
            await self._answer(channel)
        except TransferError as error:
            self._warnings.warning("side channel: dropped a connection: %s", error.message)
        except OSError:
            pass  # the reader has left

    async def _answer(self, channel: Channel) -> None:
        """Ends with an error."""
        self._accepted += 1
        connection = self._accepted
        self._channels[connection] = channel
        try:
            await self._answer_all(connection, channel)
        finally:
            del self._channels[connection]
            self._engine.forget(connection)
            channel.close()

    async def _answer_all(self, connection: int, channel: Channel) -> None:
        """Ends with an error. A request that makes no sense is answered, and ends the connection."""
        while True:
            body = await channel.receive()
            try:
                request = decode_request(body)
                answer = self._handlers[type(request)](connection, request)
            except TransferError as error:
                channel.send(RequestRefusal(error.message))
                raise
            channel.send(answer)
            await channel.drain()

    async def _aclose(self) -> None:
        self._accepting.cancel()
        self.hang_up()
        if self._serving:
            await asyncio.wait(self._serving, timeout=_CLOSE_SECONDS)
