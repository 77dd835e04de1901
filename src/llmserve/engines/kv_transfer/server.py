"""The granting end: leases on blocks of this process, and the side channel through which readers
check, renew and release them.

Messages: hello (compares the geometry, tells how to connect), probe (reads of the pattern follow now),
begin (a read of leased blocks follows now), digest (of what was read), renew, release, status;
those of push/; and from this worker's own front: meet (the peers to fetch from). A reader that sends garbage
loses its connection, nothing else.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from llmserve.core.clock import Clock
from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.core.lease import LeaseChange
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer import wire
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.engines.kv_transfer.leases import BlockLeases
from llmserve.engines.kv_transfer.peers import PROBE_SECONDS
from llmserve.engines.kv_transfer.status import HandoverStatus
from llmserve.transfer.digest import digest

_log = logging.getLogger(__name__)
_WIREUP_SECONDS = 2.0
_CLOSE_SECONDS = 2.0
_MAX_CONNECTIONS = 1024

Operation = Callable[[int, wire.Message], wire.Message]  # (connection, message) -> answer


class HandoverServer:
    """Methods without underscore may be called from any thread and never wait for the network."""

    def __init__(
        self,
        io: HandoverIo,
        worker_id: WorkerId,
        epoch: int,
        lease_seconds: float,
        clock: Clock,
        client: HandoverClient,
        host: str = "127.0.0.1",
    ) -> None:
        """Listens at once. client: the fetching end of this process, for status and meet.
        Errors: TransferError when the host cannot be bound."""
        self._io = io
        self._client = client
        self._worker_id = worker_id
        self._lock = threading.Lock()
        self._table = BlockLeases(epoch, lease_seconds, clock)
        self._channel = _SideChannel(io, self._answer)
        self._more: dict[str, Operation] = {}
        port = io.call(self._channel.listen(host))
        self.endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def add(self, operations: Mapping[str, Operation]) -> None:
        """Further messages that it answers; before any peer knows of this server. They run on the loop.
        Errors of an operation: TransferError when the message makes no sense."""
        self._more.update(operations)

    # -- the engine

    def grant(
        self, request_id: RequestId, block_ids: Sequence[int], lease_id: LeaseId | None = None
    ) -> LeaseId:
        """Pins blocks until `take_ended` names the request. lease_id: the one the pull_params carries,
        when every rank must know it beforehand. Errors: InvalidRequest."""
        with self._lock:
            return self._table.grant(request_id, block_ids, lease_id).lease_id

    def withdraw(self, request_id: RequestId) -> bool:
        """Ends the lease of a request from this side. False: it held none that was open."""
        with self._lock:
            return self._table.withdraw(request_id)

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

    def status(self) -> HandoverStatus:
        counters = self._io.counters
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
                transports=tuple(self._io.transports),
            )

    def hang_up(self) -> None:
        """On all peers, who may connect again. On the loop."""
        self._channel.hang_up()

    def close(self) -> None:
        """Readers lose their connections. Idempotent; before the io's `close`."""
        if not self._io.closed:
            self._io.call(self._channel.close())

    # -- messages, on the loop

    def _answer(self, connection: int, message: wire.Message) -> wire.Message:
        """Errors: TransferError when the message makes no sense; it ends the connection."""
        operation = message.get("op")
        if operation == "hello":
            return self._hello(connection, message)
        if operation == "status":
            return {"ok": True, **replace(self.status(), pairs=tuple(self._client.pairs())).to_message()}
        if operation == "set_peers":
            self._client.set_peers(wire.unpack_addresses(message))
            return {"ok": True}
        if operation == "probe":
            self._io.expect(connection, "probe", PROBE_SECONDS)
            return {"ok": True}
        if operation == "digest":
            return {"ok": True, "digest": digest(self._io.regions, wire.unpack_spans(message))}
        if operation in ("begin", "renew", "release"):
            return self._lease(connection, operation, message)
        if operation in self._more:
            return self._more[operation](connection, message)
        raise TransferError(f"side channel: unknown operation {str(operation)[:40]!r}")

    def _hello(self, connection: int, message: wire.Message) -> wire.Message:
        geometry = message.get("geometry")
        if not isinstance(geometry, dict):
            raise TransferError("side channel: hello without a geometry")
        mine = self._io.layout.geometry
        if obstacle := mine.obstacle(KvGeometry.from_message(geometry)):
            return {"ok": False, "error": f"the KV caches do not fit: {obstacle}"}
        self._io.expect(connection, "", _WIREUP_SECONDS)
        return {
            "ok": True,
            "worker_id": self._worker_id,
            "epoch": self._table.epoch,
            "transports": self._io.descriptions,
            "probe": self._io.probe.info.to_message(),
            "geometry": mine.to_message(),
        }

    def _lease(self, connection: int, operation: str, message: wire.Message) -> wire.Message:
        lease_id = message.get("lease_id")
        if not isinstance(lease_id, str):
            raise TransferError("side channel: a lease operation without lease_id")
        epoch = _integer(message, "epoch")
        with self._lock:
            if operation == "release":
                reader, readers = _integer(message, "reader", 0), _integer(message, "readers", 1)
                answer = self._table.release(LeaseId(lease_id), epoch, reader, readers)
            else:
                answer = self._table.renew(LeaseId(lease_id), epoch)
        if operation == "begin" and answer in (LeaseAnswer.VALID, LeaseAnswer.UNKNOWN):
            self._io.expect(connection, lease_id, self._table.lease_seconds)
        if operation == "release":
            self._io.dismiss(connection, lease_id)
        return {"ok": True, "lease": answer.value}


def _integer(message: wire.Message, name: str, default: int | None = None) -> int:
    value = message.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TransferError(f"side channel: {name} is not an integer")
    return value


class _SideChannel:
    """The listening socket and its connections; each is a number for `answer`."""

    def __init__(self, io: HandoverIo, answer: Operation) -> None:
        self._io = io
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._talks: set[asyncio.Task[None]] = set()
        self._accepted = 0

    async def listen(self, host: str) -> int:
        """Returns the port."""
        try:
            self._server = await asyncio.start_server(self._accept, host, 0)
        except OSError as error:
            raise TransferError(f"side channel: cannot listen on {host}: {error}") from error
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.hang_up()
        if self._talks:
            await asyncio.wait(self._talks, timeout=_CLOSE_SECONDS)

    def hang_up(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= _MAX_CONNECTIONS:
            writer.close()
            return
        talk = self._io.spawn("side-channel", self._serve(reader, writer))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        connection = self._accepted
        self._writers[connection] = writer
        try:
            await self._talk(connection, reader, writer)
        except TransferError as error:
            _log.warning("side channel: dropped a connection: %s", error.message)
        except OSError:
            pass  # the reader has left
        finally:
            del self._writers[connection]
            self._io.forget(connection)
            writer.close()

    async def _talk(
        self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            message = await wire.read_message(reader)
            try:
                answer = self._answer(connection, message)
            except TransferError as error:
                writer.write(wire.pack({"ok": False, "error": error.message}))
                raise
            writer.write(wire.pack(answer))
            await writer.drain()
