"""Connections of this process to the side channels of others, one for each endpoint."""

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import Mapping
from functools import partial

from llmserve.core.errors import LeaseEnded, PeerGone, TransferError
from llmserve.core.fields import split_endpoint
from llmserve.core.ids import LeaseId
from llmserve.core.kv_params import PeerAddress, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer import wire
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.transfer.base import Batch, PeerName, Spans, TransferState, TransferStatus, Transport
from llmserve.transfer.choice import Measured, PairChoice
from llmserve.transfer.lane import Copy, Lane
from llmserve.transfer.probe import ProbeInfo, probe

CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_UNKNOWN_SECONDS = 1.0
PROBE_SECONDS = 5.0
_UNKNOWN_RETRY_SECONDS = 0.01


class Peer:
    """A side channel that has said hello. Errors of every method: TransferError.

    geometry: of its rank, set by hello. choice: set after hello; it outlives the connection, as long as the
    worker is the same incarnation."""

    geometry: KvGeometry
    choice: PairChoice

    def __init__(
        self, endpoint: str, io: HandoverIo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.endpoint = endpoint
        self.worker_id = ""
        self.epoch = -1
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._io = io
        self._reader, self._writer = reader, writer
        self._descriptions: Mapping[str, str] = {}
        self._probe: ProbeInfo | None = None
        self._names: dict[str, PeerName] = {}
        self._lanes: dict[str, Lane] = {}
        self._write_lanes: dict[str, Lane] = {}
        self._answers: deque[asyncio.Future[wire.Message]] = deque()
        self._receiver = io.spawn("peer", self._receive())

    @property
    def common_transports(self) -> tuple[str, ...]:
        """Those both sides have, in the order of the manifest."""
        return tuple(name for name in self._io.transports if name in self._descriptions)

    async def read(self, name: str, batch: Batch) -> TransferStatus:
        """Copies a batch over a transport, in fair turns with other requests; DONE or FAILED. When it
        returns or has been cancelled, local memory is no longer touched. Connects when it must."""
        try:
            if name not in self._lanes:
                self._lanes[name] = self._lane(name, self._reader_of(name))
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        return await self._lanes[name].move(batch)

    def write_lane(self, name: str) -> Lane:
        """Copies batches to the peer, likewise. DONE: all has arrived; otherwise some may still arrive.
        Connects when it must."""
        if name not in self._write_lanes:
            self._write_lanes[name] = self._lane(name, partial(self._io.write, *self._connected(name)))
        return self._write_lanes[name]

    def _lane(self, name: str, copy: Copy) -> Lane:
        return Lane(copy, partial(self._limit, name), self._io.bucket)

    async def probe(self, name: str) -> Measured:
        """Measures a transport, besides the lanes."""
        assert self._probe is not None, "hello has been said"
        await self._ask({"op": "probe"})
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return await probe(self._io.probe, self._probe, self._reader_of(name))
        except TimeoutError:
            raise TransferError(f"the probe was not done within {PROBE_SECONDS:g} s") from None

    def failed(self, name: str, reason: str, now: float) -> None:
        """Opens the breaker of a transport; who waits for its lane goes another way."""
        self.choice.failed(name, reason, now)
        for lanes in (self._lanes, self._write_lanes):
            if lane := lanes.get(name):
                lane.refuse_waiting(f"out of use: {reason}")

    def _reader_of(self, name: str) -> Copy:
        return partial(self._io.read, *self._connected(name))

    def _connected(self, name: str) -> tuple[Transport, PeerName]:
        transport = self._io.transports.get(name)
        if transport is None:
            raise TransferError(f"{name} was given up")
        if name not in self._names:
            self._names[name] = transport.connect(b64decode(self._descriptions[name]))
        return transport, self._names[name]

    def _limit(self, name: str, size_bytes: int) -> float:
        return self._io.policy.limit_seconds(self.choice.expected_seconds(name, size_bytes))

    async def hello(self) -> None:
        answer = await self._ask({"op": "hello", "geometry": self._io.layout.geometry.to_message()})
        try:
            self.worker_id, self.epoch = str(answer["worker_id"]), int(answer["epoch"])
            self._descriptions = {str(k): str(v) for k, v in answer["transports"].items()}
            self._probe = ProbeInfo.from_message(answer["probe"])
            self.geometry = KvGeometry.from_message(answer["geometry"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TransferError(f"malformed hello from {self.endpoint}") from error

    async def lease(self, operation: str, pull_params: PullParams, **reader: int) -> LeaseAnswer:
        """begin, renew or release; reader and readers: release it as one of several. The request can be
        here before the owner's engine has granted the lease: an unknown lease is asked for again."""
        message = {"op": operation, "lease_id": pull_params.lease_id, "epoch": pull_params.epoch, **reader}
        give_up = asyncio.get_running_loop().time() + _UNKNOWN_SECONDS
        while True:
            answer = wire.lease_answer(await self._ask(message))
            if answer is not LeaseAnswer.UNKNOWN or asyncio.get_running_loop().time() > give_up:
                return answer
            await asyncio.sleep(_UNKNOWN_RETRY_SECONDS)

    async def demand(self, operation: str, pull_params: PullParams, **reader: int) -> None:
        """The same. Errors: LeaseEnded unless the lease is valid."""
        answer = await self.lease(operation, pull_params, **reader)
        if answer is not LeaseAnswer.VALID:
            raise LeaseEnded(f"lease {_brief(pull_params.lease_id)} at {operation}: {answer.value}")

    async def verify(self, spans: Spans, digest: str) -> None:
        """Compares what arrived here with the owner's bytes. Errors: TransferError when they differ."""
        answer = await self._ask({"op": "digest", **wire.pack_spans(spans)})
        if answer.get("digest") != digest:
            raise TransferError("other bytes arrived than were sent: the digests differ")

    async def ask(self, operation: str, fields: Mapping[str, object]) -> wire.Message:
        """A message about a push (push/messages.py)."""
        return await self._ask({"op": operation, **fields})

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
            if transport := self._io.transports.get(name):
                transport.disconnect(peer)

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
        self.changed = asyncio.Event()  # set at each new connection; whoever waits clears it
        self._peers: dict[str, Peer] = {}
        self._dialling: dict[str, asyncio.Lock] = {}
        self._closed = False

    @property
    def live(self) -> list[Peer]:
        return [peer for peer in self._peers.values() if not peer.lost.done()]

    async def get(self, address: PeerAddress) -> Peer:
        """A connection to that incarnation. Errors: TransferError; LeaseEnded when the worker has been
        restarted since."""
        if self._closed:
            raise TransferError("hand-over is closed")
        async with self._dialling.setdefault(address.endpoint, asyncio.Lock()):
            peer = self._peers.get(address.endpoint)
            if peer is None or peer.lost.done() or peer.epoch < address.epoch:
                peer = await self._replace(address.endpoint)
        if peer.epoch != address.epoch:
            raise LeaseEnded(
                f"worker {address.worker_id} is at epoch {peer.epoch}, the request at {address.epoch}"
            )
        return peer

    def hang_up(self, reason: str) -> None:
        """On all; what was learnt of them stays, and whoever asks connects again."""
        for peer in self._peers.values():
            peer.close(reason)

    def close(self) -> None:
        """No connection is opened afterwards."""
        self._closed = True
        self.hang_up("closed")
        self._peers.clear()

    async def _replace(self, endpoint: str) -> Peer:
        old = self._peers.pop(endpoint, None)
        if old is not None:
            old.close("its worker was restarted")
        peer = await self._dial(endpoint)
        if self._closed:
            peer.close()
            raise TransferError("hand-over is closed")
        peer.choice = self._choice(peer, old)
        self._peers[endpoint] = peer
        self.changed.set()
        return peer

    def _choice(self, peer: Peer, old: Peer | None) -> PairChoice:
        """What was learnt of a worker is true until it restarts."""
        if old is not None and old.epoch == peer.epoch:
            return old.choice
        return PairChoice(peer.common_transports, self._io.policy.slow_factor)

    async def _dial(self, endpoint: str) -> Peer:
        host, port = split_endpoint(endpoint)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError as error:
            raise PeerGone(f"cannot connect to {endpoint}: {error!r}") from error
        except (OSError, TimeoutError) as error:
            raise TransferError(f"cannot connect to {endpoint}: {error!r}") from error
        peer = Peer(endpoint, self._io, reader, writer)
        try:
            await peer.hello()
        except BaseException:
            peer.close("hello failed")
            raise
        return peer
