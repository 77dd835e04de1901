"""The copies of a worker that is elsewhere: those of `copier`, over the transports of the transfer engine.

A store writes a block's pieces into its slot and digests them here meanwhile. When all have arrived and the
slot is still its own, it writes the checksum beside it. A load reads the pieces, then the generation, and
digests what has arrived: it counts when both are those of the block that was meant.

Transports are tried in their order. One that fails, or brings other bytes than another, is out of use for a
while (`transfer.breaker`); after that the arena's head is read over it before anything else is. A write that
failed may still arrive in part: a slot of another by then is found to be corrupt by whoever loads it.
"""

import logging
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress

import numpy as np
import xxhash

from llmserve.core.clock import Clock, SystemClock
from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.copier import Copied, CopyOutcome
from llmserve.kvstore.dram.client.job import Job
from llmserve.kvstore.dram.client.pieces import LocalMemory, Rows
from llmserve.kvstore.dram.shape import (
    FRONT_REGION,
    HEAD_BYTES,
    WORD_BYTES,
    ArenaDescription,
    ArenaShape,
    head,
)
from llmserve.transfer.base import (
    Batch,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    Transport,
)
from llmserve.transfer.breaker import Breaker, BreakerState

_log = logging.getLogger(__name__)
_WORDS = 4096  # read or written at once
# The longest that a copy may take; less than a slot waits for a writer that is late (tier.py: quarantine).
_LEAST_SECONDS, _MOST_SECONDS, _SLOWEST_BYTES_PER_SECOND = 2.0, 20.0, 50e6
_CANCEL_SECONDS, _CANCEL_AGAIN_SECONDS = 5.0, 0.02
# (while a copy is not so many seconds old, look again so many seconds later)
_NAPS = ((0.01, 0.00005), (0.1, 0.0002), (float("inf"), 0.001))
_MOVED = Copied(CopyOutcome.MOVED)


@dataclass(eq=False, slots=True)
class _Way:
    """A transport to the arena. peer: None while it is not connected."""

    transport: Transport
    description: bytes
    breaker: Breaker = field(default_factory=Breaker)
    peer: PeerName | None = None


_Copy = Callable[[_Way, Job], list[Copied]]


class RemotePool:
    """A PoolAccess (`access`). One thread at a time; a call blocks until its copies have ended, for each
    transport at most 20 seconds or so."""

    def __init__(
        self,
        described: ArenaDescription,
        regions: Sequence[Region],
        transports: Sequence[Transport],
        clock: Clock | None = None,
    ) -> None:
        """regions: the worker's memory, which outlives the pool. clock: of the breakers. Owns the transports,
        also when it fails.
        Errors: TransferError when none of them can be meant."""
        self._shape, self._head = ArenaShape(described.capacity_bytes), head(described.nonce)
        self._memory, self._scratch = LocalMemory(regions), np.zeros(_WORDS, np.int64)
        self._scratch_region = len(regions)
        self._transports, self._clock = list(transports), clock or SystemClock()
        mine = (*regions, Region(self._scratch.ctypes.data, self._scratch.nbytes))
        self._ways = [
            _Way(transport, b64decode(described.transports[transport.name]))
            for transport in transports
            if transport.name in described.transports and _registers(transport, mine)
        ]
        if not self._ways:
            self.close()
            raise TransferError("kv pool: it is elsewhere, and has no transport in common with this worker")

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """See PoolAccess."""
        return self._over_any(self._store, Job.of(slots, spans, self._shape, self._memory))

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """See PoolAccess."""
        return self._over_any(self._load, Job.of(slots, spans, self._shape, self._memory))

    def close(self) -> None:
        transports, self._transports, self._ways = self._transports, [], []
        for transport in transports:
            _quietly(transport.close)

    # -- which way

    def _over_any(self, copy: _Copy, job: Job) -> list[Copied]:
        """Errors: TransferError when no transport does it; local memory may hold anything then."""
        now, reasons = self._clock.now(), []
        corrupt: tuple[_Way, list[Copied]] | None = None
        for way in [way for way in self._ways if way.breaker.state(now) is not BreakerState.OPEN]:
            try:
                self._meet(way)
                copied = copy(way, job)
            except TransferError as error:
                self._failed(way, error.message)
                reasons.append(f"{way.transport.name}: {error.message}")
                corrupt = None  # what it had brought may be written over
                continue
            if all(one.outcome is not CopyOutcome.CORRUPT for one in copied):
                if corrupt:
                    self._failed(corrupt[0], f"it brought other bytes than {way.transport.name}")
                return copied
            corrupt = way, copied
        if corrupt:
            return corrupt[1]
        out_of_use = [f"{way.transport.name}: {way.breaker.reason}" for way in self._ways]
        raise TransferError(f"kv pool: no transport reaches it: {'; '.join(reasons or out_of_use)}")

    def _meet(self, way: _Way) -> None:
        """Connects, and makes sure whom it has met. Errors: TransferError."""
        if way.peer is not None:
            return
        way.peer = way.transport.connect(way.description)
        self._scratch[:] = 0
        here, there = _span(self._scratch_region, 0, HEAD_BYTES), _span(FRONT_REGION, 0, HEAD_BYTES)
        self._finish(way, way.transport.read(way.peer, Batch(here, there)), HEAD_BYTES)
        if self._scratch.tobytes()[:HEAD_BYTES] != self._head:
            raise TransferError("kv pool: its owner no longer has it")
        way.breaker.succeeded(self._clock.now())
        _log.info("the KV pool is reached over %s", way.transport.name)

    def _failed(self, way: _Way, reason: str) -> None:
        _log.warning("the KV pool over %s: %s", way.transport.name, reason)
        way.breaker.failed(reason, self._clock.now())
        peer, way.peer = way.peer, None
        if peer is not None:
            _quietly(partial(way.transport.disconnect, peer))

    # -- copies over one transport; errors of each: TransferError

    def _store(self, way: _Way, job: Job) -> list[Copied]:
        mine = self._current(way, job.slots)
        kept = job.only(mine)
        if not kept.slots:
            return [_MOVED] * len(mine)
        transfer = way.transport.write(_met(way), kept.batch)
        checksums = list(map(self._digest, kept.rows))  # of what is sent, while it is
        self._finish(way, transfer, kept.batch.local.total_bytes)
        still = self._current(way, kept.slots)
        self._note(way, list(compress(kept.slots, still)), list(compress(checksums, still)))
        ended = zip(checksums, still, strict=True)
        return [_stored(*next(ended)) if is_mine else _MOVED for is_mine in mine]

    def _load(self, way: _Way, job: Job) -> list[Copied]:
        transfer = way.transport.read(_met(way), job.batch)
        self._finish(way, transfer, job.batch.local.total_bytes)
        current = self._current(way, job.slots)
        blocks = zip(job.slots, job.rows, current, strict=True)
        return [self._loaded(slot, rows) if is_current else _MOVED for slot, rows, is_current in blocks]

    def _loaded(self, slot: Slot, rows: Sequence[Rows]) -> Copied:
        checksum = self._digest(rows)
        return Copied(CopyOutcome.DONE if checksum == slot.checksum else CopyOutcome.CORRUPT, checksum)

    def _digest(self, rows: Sequence[Rows]) -> int:
        state = xxhash.xxh3_64()
        self._memory.digest(rows, state)
        return state.intdigest()

    # -- words of slots

    def _current(self, way: _Way, slots: Sequence[Slot]) -> list[bool]:
        """Whether this use of each has not ended (AttachedArena.is_current)."""
        found: list[bool] = []
        for first in range(0, len(slots), _WORDS):
            some = slots[first : first + _WORDS]
            batch = self._words(some, self._shape.words_offset)
            self._finish(way, way.transport.read(_met(way), batch), len(some) * WORD_BYTES)
            words = self._scratch[: len(some)].tolist()
            found += [0 != word == slot.generation for word, slot in zip(words, some, strict=True)]
        return found

    def _note(self, way: _Way, slots: Sequence[Slot], checksums: Sequence[int]) -> None:
        """See AttachedArena.note_checksum."""
        for first in range(0, len(slots), _WORDS):
            some = slots[first : first + _WORDS]
            self._scratch.view(np.uint64)[: len(some)] = checksums[first : first + _WORDS]
            batch = self._words(some, self._shape.checksums_offset)
            self._finish(way, way.transport.write(_met(way), batch), len(some) * WORD_BYTES)

    def _words(self, slots: Sequence[Slot], offset: int) -> Batch:
        """A word of each slot's first page and the scratch memory. offset: of all such words in the front."""
        count = len(slots)
        lengths = np.full(count, WORD_BYTES, np.int64)
        pages = np.array([slot.page for slot in slots], np.int64)
        here = Spans(np.full(count, self._scratch_region), np.arange(count) * WORD_BYTES, lengths)
        return Batch(here, Spans(np.full(count, FRONT_REGION), offset + pages * WORD_BYTES, lengths))

    # -- parts

    def _finish(self, way: _Way, transfer: Transfer, size_bytes: int) -> None:
        """When it returns or fails, local memory is no longer touched."""
        limit = min(_MOST_SECONDS, _LEAST_SECONDS + size_bytes / _SLOWEST_BYTES_PER_SECOND)
        started = time.monotonic()
        while (status := way.transport.poll(transfer)).state is TransferState.RUNNING:
            age = time.monotonic() - started
            if age > limit:
                self._let_go(way, transfer)
                raise TransferError(f"too slow: {size_bytes} bytes not done within {limit:.3g} s")
            time.sleep(next(nap for young, nap in _NAPS if age < young))
        if status.state is TransferState.FAILED:
            raise TransferError(status.reason or "failed without a reason")

    def _let_go(self, way: _Way, transfer: Transfer) -> None:
        """A transport that cannot cancel is closed for good: nothing else ends what it is doing."""
        give_up = time.monotonic() + _CANCEL_SECONDS
        while time.monotonic() < give_up:
            try:
                way.transport.cancel(transfer)
                return
            except TransferError:
                time.sleep(_CANCEL_AGAIN_SECONDS)
        _log.error("%s does not end a copy, and is given up", way.transport.name)
        self._ways.remove(way)
        _quietly(way.transport.close)


def _met(way: _Way) -> PeerName:
    assert way.peer is not None, "met"
    return way.peer


def _stored(checksum: int, is_current: bool) -> Copied:
    return Copied(CopyOutcome.DONE, checksum) if is_current else _MOVED


def _span(region: int, offset: int, length: int) -> Spans:
    return Spans(*(np.array([value], np.int64) for value in (region, offset, length)))


def _registers(transport: Transport, regions: Sequence[Region]) -> bool:
    try:
        transport.register(regions)
    except TransferError as error:
        _log.warning("%s does not reach the KV pool: %s", transport.name, error.message)
        return False
    return True


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except TransferError as error:
        _log.warning("kv pool: %s", error.message)
