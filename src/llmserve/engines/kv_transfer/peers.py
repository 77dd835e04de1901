"""Connections of this process to the side channels of others, one for each endpoint; and the prober, which
keeps the matrix of the process: which transport to which peer, at what speed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from llmserve.core.errors import LeaseEnded, TransferError
from llmserve.core.kv_params import PeerAddress
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer.channel import Channel, answer_about_lease, open_client
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.engines.kv_transfer.protocol import (
    A,
    AnnounceProbe,
    Answer,
    AskDigest,
    BeginRead,
    DigestIs,
    Done,
    Hello,
    LeaseIs,
    ReleaseLease,
    RenewLease,
    Request,
    Welcome,
    decode_answer,
    expect,
)
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.transfer.base import Batch
from llmserve.transfer.engine.choice import Sample
from llmserve.transfer.engine.pair import Check, Pair

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 5.0
_UNKNOWN_SECONDS = 1.0  # for its engine to grant a lease that a request names already
_DIGEST_PIECES = 8192  # in one message; takes either side about 10 ms
_RETRY_SECONDS = 5.0  # between two attempts to connect to a peer that cannot be reached
_SHORTEST_SECONDS = 0.05


class Peer:
    """A side channel that has said hello. Errors of every method: TransferError.

    geometry: that of its rank. pair: the transports to it. `hello` sets both."""

    geometry: KvGeometry
    pair: Pair

    def __init__(self, endpoint: str, engine: RankEngine, channel: Channel) -> None:
        self.endpoint = endpoint
        self.worker_id = ""
        self.epoch = -1
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._channel = channel
        self._answers: deque[asyncio.Future[Answer]] = deque()
        self._receiver = engine.spawn("peer", self._receive())

    async def hello(self, earlier: "Peer | None") -> None:
        """earlier: a connection to the same endpoint; what it has learnt is true until the worker
        restarts."""
        welcome = await self.ask(Hello(self._engine.layout.geometry), Welcome)
        self.worker_id, self.epoch, self.geometry = welcome.worker_id, welcome.epoch, welcome.geometry
        choice = earlier.pair.choice if earlier is not None and earlier.epoch == self.epoch else None
        self.pair = Pair(self._engine, self.worker_id, welcome.transports, welcome.probe, choice)

    async def announce_probe(self) -> None:
        """Lets the peer serve the probe that follows."""
        await self.ask(AnnounceProbe(), Done)

    async def lease(
        self, request: BeginRead | RenewLease | ReleaseLease, seconds: float = _UNKNOWN_SECONDS
    ) -> LeaseAnswer:
        """An unknown lease is asked for again, for so long."""
        return await answer_about_lease(lambda: self.ask(request, LeaseIs), seconds)

    async def demand(
        self, request: BeginRead | RenewLease | ReleaseLease, seconds: float = _UNKNOWN_SECONDS
    ) -> None:
        """The same. Errors: LeaseEnded unless the lease is valid."""
        answer = await self.lease(request, seconds)
        if answer is not LeaseAnswer.VALID:
            operation = request.__struct_config__.tag
            raise LeaseEnded(f"lease {request.lease_id[:120]} at {operation}: {answer.value}")

    async def compare(self, batch: Batch, sample: Sample) -> None:
        """Compares a sample of the pieces that were copied, here and at the peer. Errors: TransferError when
        they differ."""
        with self.comparing(batch, sample) as compare:
            await compare()

    @contextmanager
    def comparing(self, batch: Batch, sample: Sample) -> Iterator[Check]:
        """The same for pieces that are still on their way here: asks the peer at once, whose bytes do not
        change while they are leased. Yields what compares them, to be called when they have arrived. Errors:
        TransferError, also of the comparison."""
        chosen = sample.take(len(batch.local.lengths))
        local, remote = batch.local.cut(chosen), batch.remote.cut(chosen)
        firsts = range(0, len(remote.lengths), _DIGEST_PIECES)
        groups = [slice(first, first + _DIGEST_PIECES) for first in firsts]
        asked = [self._send(AskDigest.of(remote.cut(group))) for group in groups]

        async def compare() -> None:
            for group, answer in zip(groups, asked, strict=True):
                theirs = await self._answered(answer, DigestIs)
                if theirs.digest != self._engine.digest(local.cut(group)):
                    raise TransferError("other bytes arrived than were sent: the digests differ")

        try:
            yield compare
        finally:
            for answer in asked:
                _forget(answer)

    async def ask(self, request: Request, kind: type[A]) -> A:
        """kind: of the answer."""
        return await self._answered(self._send(request), kind)

    def _send(self, request: Request) -> asyncio.Future[Answer]:
        """Sends a request, and returns what will be its answer."""
        if self.lost.done():
            raise self._loss()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._channel.send(request)
        return answer

    async def _answered(self, answer: asyncio.Future[Answer], kind: type[A]) -> A:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return expect(await answer, kind)
        except TimeoutError as error:
            self.close(f"no {kind.__name__} within {_ANSWER_SECONDS:g} s")
            raise self._loss() from error

    def close(self, reason: str = "closed") -> None:
        """Idempotent."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._channel.close()
        self._receiver.cancel()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(self._loss())
        if self.epoch >= 0:
            self.pair.close(reason)

    async def _receive(self) -> None:
        try:
            while True:
                message = decode_answer(await self._channel.receive())
                if not self._answers:
                    raise TransferError("an answer that nobody asked for")
                answer = self._answers.popleft()
                if not answer.done():
                    answer.set_result(message)
        except (OSError, TransferError) as error:
            self.close(str(error))

    def _loss(self) -> TransferError:
        return TransferError(f"connection to {self.endpoint} lost: {self.lost.result()}")


def _forget(answer: asyncio.Future[Answer]) -> None:
    """Nobody waits for this answer any more; asyncio logs an error that nobody has seen."""
    if not answer.cancel() and not answer.cancelled():
        answer.exception()


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
        peer = Peer(endpoint, self._engine, await open_client(endpoint, self._engine.credentials))
        try:
            await peer.hello(earlier)
        except BaseException:
            peer.close("hello failed")
            raise
        return peer


class Prober:
    """Probes peers when they join (`set_peers`), at the first connection to a peer that nobody announced, and
    when the pause of a breaker is over. On the loop of its engine; `start` once."""

    def __init__(self, engine: RankEngine, peers: PeerDirectory, unusable: Mapping[str, str]) -> None:
        """unusable: transports that this process does not have, with the reason; each is a row of its own."""
        self._engine = engine
        self._unusable = unusable
        self._peers = peers
        self._announced: dict[str, PeerAddress] = {}
        self._refused: dict[str, str] = {}  # endpoint -> why there is no connection

    def start(self) -> None:
        self._engine.spawn("prober", self._run())

    def set_peers(self, addresses: Sequence[PeerAddress]) -> None:
        """Names all peers that this process may fetch from; replaces those of the call before."""
        self._announced = {address.endpoint: address for address in addresses}
        self._refused = {key: why for key, why in self._refused.items() if key in self._announced}
        self._peers.changed.set()

    def rows(self) -> list[PairStatus]:
        found = self._engine.matrix.rows()
        for endpoint, why in self._refused.items():
            found.append(_row("refused", self._announced[endpoint].worker_id, "", why))
        unusable = {**self._unusable, **self._engine.unusable}
        return found + [_row("unavailable", "", name, why) for name, why in unusable.items()]

    async def _run(self) -> None:
        while True:
            self._peers.changed.clear()
            for address in list(self._announced.values()):
                await self._connect(address)
            for peer in self._peers.live:
                await peer.pair.probe_due(peer.announce_probe)
            await self._sleep()

    async def _connect(self, address: PeerAddress) -> None:
        try:
            await self._peers.get(address)
        except TransferError as error:
            if self._refused.get(address.endpoint) != error.message:
                _log.warning("no kv transfer from %s: %s", address.worker_id, error.message)
            self._refused[address.endpoint] = error.message
        else:
            self._refused.pop(address.endpoint, None)

    async def _sleep(self) -> None:
        """Waits until something changes, or the next probe is due."""
        now = self._engine.clock.now()
        seconds = min((peer.pair.choice.next_due() - now for peer in self._peers.live), default=float("inf"))
        if self._refused:
            seconds = min(seconds, _RETRY_SECONDS)
        try:
            async with asyncio.timeout(None if seconds == float("inf") else max(_SHORTEST_SECONDS, seconds)):
                await self._peers.changed.wait()
        except TimeoutError:
            return


def _row(breaker: str, peer: str, transport: str, why: str) -> PairStatus:
    return PairStatus(peer, transport, False, breaker, why, 0.0, 0.0, 0, 0, 0.0, 0)
