"""Connections of this process to the side channels of others, one for each endpoint."""

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import Mapping

from llmserve.core.errors import LeaseEnded, PeerGone, TransferError
from llmserve.core.fields import split_endpoint
from llmserve.core.ids import LeaseId
from llmserve.core.kv_params import PeerAddress, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer import wire
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.transfer.base import Spans
from llmserve.transfer.engine.pair import Pair
from llmserve.transfer.engine.probe import ProbeInfo

CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_UNKNOWN_SECONDS = 1.0
_UNKNOWN_RETRY_SECONDS = 0.01


class Peer:
    """A side channel that has said hello. Errors of every method: TransferError.

    geometry: of its rank. pair: the transports to it. Both are set by `hello`."""

    geometry: KvGeometry
    pair: Pair

    def __init__(
        self,
        endpoint: str,
        engine: RankEngine,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.endpoint = endpoint
        self.worker_id = ""
        self.epoch = -1
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._reader, self._writer = reader, writer
        self._answers: deque[asyncio.Future[wire.Message]] = deque()
        self._receiver = engine.spawn("peer", self._receive())

    async def announce_probe(self) -> None:
        """Lets the peer serve the probe that follows."""
        await self._ask({"op": "probe"})

    async def hello(self, earlier: "Peer | None") -> None:
        """earlier: a connection to the same endpoint; what it has learnt is true until the worker
        restarts."""
        answer = await self._ask({"op": "hello", "geometry": self._engine.layout.geometry.to_message()})
        try:
            self.worker_id, self.epoch = str(answer["worker_id"]), int(answer["epoch"])
            descriptions = {str(k): b64decode(v) for k, v in answer["transports"].items()}
            probe = ProbeInfo(**answer["probe"])
            self.geometry = KvGeometry.from_message(answer["geometry"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TransferError(f"malformed hello from {self.endpoint}") from error
        choice = earlier.pair.choice if earlier is not None and earlier.epoch == self.epoch else None
        self.pair = Pair(self._engine, self.worker_id, descriptions, probe, choice)

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
        if self.epoch >= 0:
            self.pair.close(reason)

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

    def __init__(self, engine: RankEngine) -> None:
        self._engine = engine
        self.changed = asyncio.Event()  # set when there may be something to probe; who waits clears it
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
        peer = await self._dial(endpoint, old)
        if self._closed:
            peer.close()
            raise TransferError("hand-over is closed")
        peer.pair.on_failure = self.changed.set
        self._peers[endpoint] = peer
        self.changed.set()
        return peer

    async def _dial(self, endpoint: str, earlier: Peer | None) -> Peer:
        host, port = split_endpoint(endpoint)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError as error:
            raise PeerGone(f"cannot connect to {endpoint}: {error!r}") from error
        except (OSError, TimeoutError) as error:
            raise TransferError(f"cannot connect to {endpoint}: {error!r}") from error
        peer = Peer(endpoint, self._engine, reader, writer)
        try:
            await peer.hello(earlier)
        except BaseException:
            peer.close("hello failed")
            raise
        return peer
