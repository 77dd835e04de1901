"""Connections of this process to the side channels of others, one for each endpoint."""

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import Mapping

from llmserve.core.errors import LeaseEnded, TransferError
from llmserve.core.ids import LeaseId
from llmserve.engines.handover import wire
from llmserve.engines.handover.io import HandoverIo
from llmserve.engines.handover.ticket import HandoverTicket, split_endpoint
from llmserve.kvstore.leases import LeaseAnswer
from llmserve.transfer.base import PeerName, Transport

CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_UNKNOWN_SECONDS = 1.0
_DISTRUST_SECONDS = 30.0
_UNKNOWN_RETRY_SECONDS = 0.01


class Peer:
    """A side channel that has said hello. Errors of every method: TransferError."""

    def __init__(
        self, endpoint: str, io: HandoverIo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.endpoint = endpoint
        self.epoch = -1
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._io = io
        self._reader, self._writer = reader, writer
        self._descriptions: Mapping[str, str] = {}
        self._names: dict[str, PeerName] = {}
        self._distrusted: dict[str, float] = {}  # transports that failed, and until when that counts
        self._answers: deque[asyncio.Future[wire.Message]] = deque()
        self._receiver = io.spawn("peer", self._receive())

    @property
    def transports(self) -> tuple[str, ...]:
        """Those both sides have, in the order of the manifest; those that failed lately come last."""
        now = asyncio.get_running_loop().time()
        common = [name for name in self._io.transports if name in self._descriptions]
        return tuple(sorted(common, key=lambda name: self._distrusted.get(name, 0.0) > now))

    def transport(self, name: str) -> tuple[Transport, PeerName]:
        """Connects at the first call for each name."""
        transport = self._io.transports[name]
        if name not in self._names:
            self._names[name] = transport.connect(b64decode(self._descriptions[name]))
        return transport, self._names[name]

    def distrust(self, name: str) -> None:
        self._distrusted[name] = asyncio.get_running_loop().time() + _DISTRUST_SECONDS

    async def hello(self) -> None:
        answer = await self._ask({"op": "hello", "geometry": self._io.layout.geometry.to_message()})
        try:
            self.epoch = int(answer["epoch"])
            self._descriptions = {str(k): str(v) for k, v in answer["transports"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TransferError(f"malformed hello from {self.endpoint}") from error

    async def lease(self, operation: str, ticket: HandoverTicket) -> LeaseAnswer:
        """begin, renew or release. The ticket can be here before the owner's engine has granted
        the lease, a step later: an unknown lease is asked for again, for a second."""
        message = {"op": operation, "lease_id": ticket.lease_id, "epoch": ticket.epoch}
        give_up = asyncio.get_running_loop().time() + _UNKNOWN_SECONDS
        while True:
            answer = wire.lease_answer(await self._ask(message))
            if answer is not LeaseAnswer.UNKNOWN or asyncio.get_running_loop().time() > give_up:
                return answer
            await asyncio.sleep(_UNKNOWN_RETRY_SECONDS)

    async def demand(self, operation: str, ticket: HandoverTicket) -> None:
        """The same. Errors: LeaseEnded unless the lease is valid."""
        answer = await self.lease(operation, ticket)
        if answer is not LeaseAnswer.VALID:
            raise LeaseEnded(f"lease {_brief(ticket.lease_id)} at {operation}: {answer.value}")

    def close(self, reason: str = "closed") -> None:
        """Idempotent."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._writer.close()
        self._receiver.cancel()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(self._loss())
        for name, peer in self._names.items():
            self._io.transports[name].disconnect(peer)

    async def _ask(self, message: wire.Message) -> wire.Message:
        if self.lost.done():
            raise self._loss()
        answer: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._writer.write(wire.pack(message))
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return wire.check_answer(await answer)
        except TimeoutError as error:
            self.close(f"no answer to {message['op']} within {_ANSWER_SECONDS:g} s")
            raise self._loss() from error

    async def _receive(self) -> None:
        try:
            while True:
                message = await wire.read_message(self._reader)
                if not self._answers:
                    raise TransferError("an answer that nobody asked for")
                answer = self._answers.popleft()
                if not answer.done():
                    answer.set_result(message)
        except (OSError, TransferError) as error:
            self.close(str(error))

    def _loss(self) -> TransferError:
        return TransferError(f"connection to {self.endpoint} lost: {self.lost.result()}")


def _brief(lease_id: LeaseId) -> str:
    return lease_id[:120]


class PeerDirectory:
    """At most one live connection for each endpoint."""

    def __init__(self, io: HandoverIo) -> None:
        self._io = io
        self._peers: dict[str, Peer] = {}
        self._dialling: dict[str, asyncio.Lock] = {}

    async def get(self, ticket: HandoverTicket, rank: int) -> Peer:
        """A connection to the incarnation that made the ticket. Errors: TransferError; LeaseEnded
        when the worker has been restarted since."""
        if not 0 <= rank < len(ticket.endpoints):
            raise TransferError(f"the ticket has no endpoint for rank {rank}")
        endpoint = ticket.endpoints[rank]
        async with self._dialling.setdefault(endpoint, asyncio.Lock()):
            peer = self._peers.get(endpoint)
            if peer is None or peer.lost.done() or peer.epoch < ticket.epoch:
                peer = await self._replace(endpoint)
        if peer.epoch != ticket.epoch:
            raise LeaseEnded(
                f"worker {ticket.worker_id} is at epoch {peer.epoch}, the ticket at {ticket.epoch}"
            )
        return peer

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    async def _replace(self, endpoint: str) -> Peer:
        if old := self._peers.pop(endpoint, None):
            old.close("its worker was restarted")
        peer = await self._dial(endpoint)
        self._peers[endpoint] = peer
        return peer

    async def _dial(self, endpoint: str) -> Peer:
        host, port = split_endpoint(endpoint)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise TransferError(f"cannot connect to {endpoint}: {error!r}") from error
        peer = Peer(endpoint, self._io, reader, writer)
        try:
            await peer.hello()
        except BaseException:
            peer.close("hello failed")
            raise
        return peer
