"""One push at the writing end: waits for what it needs, writes what is computed, reports the outcome."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from llmserve.core.errors import LeaseEnded, TransferError
from llmserve.core.ids import LeaseId, RequestId, TransferId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer.peers import Peer, PeerDirectory
from llmserve.engines.kv_transfer.protocol import (
    BeginPush,
    EndPush,
    LeaseIs,
    PushOutcome,
    PushStanding,
    PushState,
    Reservation,
)
from llmserve.engines.kv_transfer.push.progress import LayerPiece, PushProgress
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.transfer.base import Batch
from llmserve.transfer.engine.choice import Sample

_log = logging.getLogger(__name__)
_REPORTS = 2
_CHECKS_PER_PATIENCE = 4


class Leases(Protocol):
    """On the blocks of finished prefills. Callable from any thread."""

    def renew(self, lease_id: LeaseId) -> bool: ...
    def withdraw(self, request_id: RequestId) -> bool: ...


@dataclass(frozen=True, slots=True)
class PushLimits:
    """write_bytes: written at once; a push that is stopped finishes it. patience_seconds: how long a
    transfer waits for its own engine to know of it, and afterwards for a word from decode."""

    write_bytes: int = 8 << 20
    patience_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Finish:
    """Prefill is done. pull_params: with the lease on its blocks. tokens: what it drew."""

    request_id: RequestId
    pull_params: PullParams
    tokens: tuple[int, ...]


class GivenUp(Exception):
    """Nobody wants the rest of a push."""


@dataclass(slots=True)
class PushTransfer:
    """Its owner runs `run` as a task on the engine's loop, and calls the other methods when something
    happens."""

    transfer_id: TransferId
    engine: RankEngine
    peers: PeerDirectory
    leases: Leases
    limits: PushLimits
    _sample: Sample = field(init=False)  # of the pieces that are compared
    _transport: str = ""  # the last one that worked
    _seconds: float = 0.0  # time spent writing and comparing
    _unclean: set[str] = field(default_factory=set)  # transports over which bytes may still arrive at decode
    _is_writing: bool = False
    _progress: PushProgress = field(init=False)
    _announced: bool = False
    _reservation: Reservation | None = None
    _finish: Finish | None = None
    _outcome: PushOutcome | None = None
    _stopped: bool = False  # by decode
    _ended: bool = False
    _heard_at: float = field(default_factory=time.monotonic)
    _begun_at: float = field(default_factory=time.monotonic)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._sample = self.engine.policy.sample()
        geometry = self.engine.layout.geometry
        self._progress = PushProgress(geometry.block_bytes, len(geometry.windows))

    # -- prefill's engine

    def announce(self) -> None:
        """The engine has the request: it will finish it, or drop it."""
        self._announced = True
        self._wake.set()

    def computed(self, layer: int, end_block: int, blocks: BlockTable) -> None:
        """See PushProgress."""
        self._progress.computed(layer, end_block, blocks)
        self._wake.set()

    def restart(self) -> None:
        self._progress.restart()

    def finish(self, finish: Finish) -> None:
        self._finish = finish
        self._progress.finish(finish.pull_params.blocks)
        self._wake.set()
        if self._stopped and self._ended:
            self._give_back()

    def drop(self, reason: str) -> None:
        """Prefill will not finish this prompt."""
        if self._outcome is None:
            self._outcome = PushOutcome(reason=reason, unclean=tuple(self._unclean))
        self._wake.set()

    # -- decode

    def reserve(self, reservation: Reservation) -> None:
        """Takes decode's reservation. A second one is ignored: decode repeats itself. Errors: TransferError
        for one that does not fit."""
        if self._reservation is None:
            self._progress.want(reservation)
            self._reservation = reservation
            self._wake.set()

    def stop(self) -> bool:
        """Begins nothing more. Returns whether a write is under way."""
        self._stopped = True
        self._wake.set()
        return self._is_writing

    def hear(self) -> None:
        """Notes that decode still waits."""
        self._heard_at = time.monotonic()
        if self._finish:
            self.leases.renew(self._finish.pull_params.lease_id)

    def standing(self) -> PushStanding:
        if self._is_writing:
            return PushStanding(PushState.WRITING)
        if self._stopped:
            return PushStanding(PushState.STOPPED, unclean=tuple(self._unclean))
        if self._outcome is not None:
            return PushStanding(PushState.ENDED, self._outcome)
        return PushStanding(PushState.UNKNOWN if self._ended else PushState.WAITING)

    # -- its life

    async def run(self) -> None:
        """Ends when decode has the outcome, or nobody wants it. Raises CancelledError only."""
        try:
            await self._push()
        except GivenUp as given_up:
            _log.info("kv push %s given up: %s", self.transfer_id, given_up)
        except TransferError as error:
            _log.warning("kv push %s failed: %s", self.transfer_id, error.message)
            await self._fail(error.message)
        finally:
            self._ended = True
            if self._stopped:
                self._give_back()

    async def _push(self) -> None:
        await self._until(lambda: self._progress.ready)
        assert self._reservation is not None, "nothing is ready without one"
        peer = await self.peers.get(self._reservation.address)
        self._check_alike(peer)
        await self._begin(peer, self._reservation)
        while not self._progress.complete:
            self._check_wanted()
            self._progress.check_fits()
            if pieces := self._progress.take(self.limits.write_bytes):
                await self._write(peer, pieces)
            else:
                await self._until(lambda: self._progress.ready or self._progress.complete)
        await self._report(self._success())

    def _check_alike(self, peer: Peer) -> None:
        """Checks that both workers hold their KV in the same shape, as a push needs it. Errors:
        TransferError; a pull is possible all the same."""
        mine, theirs = self.engine.layout.geometry, peer.geometry
        if not mine.is_like(theirs) or mine.shard != theirs.shard:
            raise TransferError("blocks are pushed only between workers of one shape")

    async def _begin(self, peer: Peer, reservation: Reservation) -> None:
        begin = BeginPush(reservation.reservation_id, reservation.address.epoch)
        answer = (await peer.ask(begin, LeaseIs)).lease
        if answer is not LeaseAnswer.VALID:
            self._stopped = True
            raise GivenUp(f"decode's reservation: {answer.value}")

    async def _write(self, peer: Peer, pieces: list[LayerPiece]) -> None:
        """Errors: TransferError with every reason."""
        rows = [(piece.layer, piece.source_ids, piece.target_ids) for piece in pieces]
        batch = self.engine.layout.layer_batch(rows, peer.geometry)
        self._is_writing = True
        try:
            await peer.pair.over_any(partial(self._write_over, peer, batch), [])
        finally:
            self._is_writing = False

    async def _write_over(self, peer: Peer, batch: Batch, name: str) -> None:
        check = partial(peer.compare, batch, self._sample)
        self._seconds += await peer.pair.write(name, batch, check, self._unclean)
        self._transport = name

    def _success(self) -> PushOutcome:
        """Errors: LeaseEnded: the blocks may have changed while they were written."""
        assert self._finish is not None, "complete"
        if not self.leases.renew(self._finish.pull_params.lease_id):
            raise LeaseEnded("prefill's lease ended before all was written")
        return PushOutcome(
            tokens=self._finish.tokens,
            pull_params=self._finish.pull_params,
            transport=self._transport,
            bytes=self._progress.taken_bytes,
            seconds=self._seconds,
        )

    async def _fail(self, reason: str) -> None:
        """Reports a failure, once there are parameters that decode can pull with instead."""
        with suppress(GivenUp):
            await self._until(lambda: self._finish is not None)
            assert self._finish is not None
            unclean = tuple(self._unclean)
            await self._report(PushOutcome(reason, unclean, self._finish.tokens, self._finish.pull_params))

    async def _report(self, outcome: PushOutcome) -> None:
        """Reports the outcome. A decode that cannot be reached finds it by asking."""
        self._check_wanted()
        self._outcome = outcome
        for _ in range(_REPORTS):
            with suppress(TransferError):
                answer = await self._send(outcome)
                _log.info("kv push %s: %s %s", self.transfer_id, answer.value, outcome)
                if outcome.complete:  # otherwise it is decode's, which pulls now
                    self._give_back()
                return

    async def _send(self, outcome: PushOutcome) -> LeaseAnswer:
        reservation = self._reservation
        if reservation is None:
            raise TransferError("decode has reserved nothing yet")
        peer = await self.peers.get(reservation.address)
        end = EndPush(reservation.reservation_id, reservation.address.epoch, outcome)
        return (await peer.ask(end, LeaseIs)).lease

    def _give_back(self) -> None:
        if self._finish is not None:
            self.leases.withdraw(self._finish.request_id)

    # -- waiting

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds. Errors: GivenUp when nobody wants the push any more."""
        self._check_wanted()
        while not condition():
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.patience_seconds / _CHECKS_PER_PATIENCE):
                    await self._wake.wait()
            self._check_wanted()

    def _check_wanted(self) -> None:
        if self._stopped:
            raise GivenUp("stopped by decode")
        if self._outcome is not None:
            raise GivenUp(self._outcome.reason)
        now, patience = time.monotonic(), self.limits.patience_seconds
        if not self._announced and now - self._begun_at > patience:
            raise GivenUp("the engine knows nothing of it")
        if self._finish is not None and now - self._heard_at > patience:
            raise GivenUp("decode has not been heard of")
