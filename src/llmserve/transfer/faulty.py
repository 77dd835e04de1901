"""A transport with injected faults, for tests and to try out the fallbacks of a cluster."""

import ctypes
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmserve.core.clock import Clock, SystemClock
from llmserve.core.errors import TransferError
from llmserve.transfer.base import (
    Batch,
    Memory,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
    Transport,
)
from llmserve.transfer.devices import RegionCopies, Staging
from llmserve.transfer.faults import Fault, FaultPlan, Faults, RuleDraws

_log = logging.getLogger(__name__)
_RUNNING = TransferStatus(TransferState.RUNNING)


@dataclass(eq=False, slots=True)
class FaultyTransfer:
    """inner: the transfer of the inner transport, and result its last status. Once that has ended: not_before
    is the time from which it may be reported, failure is reported instead, and flip is a byte to invert."""

    peer: PeerName
    inner: Transfer
    not_before: float = -math.inf
    failure: str = ""
    flip: Spans | None = None
    result: TransferStatus = _RUNNING

    def fail(self, reason: str) -> None:
        self.not_before = -math.inf
        self.failure = reason


class FaultyTransport:
    """Wraps and owns a transport, and has its name. Without faults it behaves as the inner transport.
    staging: as that of the inner transport."""

    def __init__(
        self,
        inner: Transport,
        plan: FaultPlan,
        clock: Clock | None = None,
        staging: Staging | None = None,
    ) -> None:
        self.name = inner.name
        self.needs_progress = inner.needs_progress
        self.faults = Faults(plan, inner.name)
        self._inner = inner
        self._clock = clock or SystemClock()
        self._staging = staging
        self._regions: tuple[Region, ...] = ()
        self._running: set[FaultyTransfer] = set()

    def reaches(self, memory: Memory) -> bool:
        return self._inner.reaches(memory)

    def register(self, regions: Sequence[Region]) -> None:
        self._fail_all("the memory was registered anew")
        self._inner.register(regions)
        self._regions = tuple(regions)

    def describe(self) -> bytes:
        return self._inner.describe()

    def connect(self, description: bytes) -> PeerName:
        return self._inner.connect(description)

    def disconnect(self, peer: PeerName) -> None:
        self._inner.disconnect(peer)

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        struck = self._draw(peer)
        transfer = self._start(self._inner.read, peer, batch, struck)
        if draws := struck.get(Fault.CORRUPT):
            transfer.flip = _byte_to_flip(batch.local, draws)
        return transfer

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        struck = self._draw(peer)
        if draws := struck.get(Fault.CORRUPT):
            batch = _with_a_piece_lost(batch, draws)
        return self._start(self._inner.write, peer, batch, struck)

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, FaultyTransfer), "a transfer of this transport"
        if transfer.result.state is TransferState.RUNNING:
            transfer.result = self._inner.poll(transfer.inner)
        if transfer.result.state is TransferState.RUNNING or self._clock.now() < transfer.not_before:
            return _RUNNING
        self._running.discard(transfer)
        return self._outcome(transfer)

    def watch(self, on_end: Callable[[], object]) -> bool:
        """Faults end transfers at other times than the inner transport."""
        return False

    def progress(self) -> None:
        self._inner.progress()

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FaultyTransfer), "a transfer of this transport"
        if transfer.result.state is TransferState.RUNNING:
            self._inner.cancel(transfer.inner)
        self._running.discard(transfer)

    def close(self) -> None:
        self._fail_all("the transport was closed")
        self._inner.close()

    # -- inside

    def _draw(self, peer: PeerName) -> Mapping[Fault, RuleDraws]:
        """Returns the faults of the next transfer. Errors: TransferError when that must not start."""
        struck = self.faults.draw()
        if struck:
            _log.info("transport %s: injected %s", self.name, ", ".join(struck))
        if Fault.DROP_PEER in struck:
            self._drop(peer)
        for fault in (Fault.DROP_PEER, Fault.FAIL_SUBMIT):
            if fault in struck:
                raise TransferError(self._reason(fault))
        return struck

    def _start(
        self,
        submit: Callable[[PeerName, Batch], Transfer],
        peer: PeerName,
        batch: Batch,
        struck: Mapping[Fault, RuleDraws],
    ) -> FaultyTransfer:
        transfer = FaultyTransfer(peer, submit(peer, batch))
        if draws := struck.get(Fault.DELAY):
            transfer.not_before = self._clock.now() + draws.rule.seconds
        if Fault.STALL in struck:
            transfer.not_before = math.inf
        if Fault.FAIL_POLL in struck:
            transfer.failure = self._reason(Fault.FAIL_POLL)
        self._running.add(transfer)
        return transfer

    def _drop(self, peer: PeerName) -> None:
        for transfer in self._running:
            if transfer.peer == peer:
                transfer.fail(self._reason(Fault.DROP_PEER))
        self._inner.disconnect(peer)

    def _fail_all(self, reason: str) -> None:
        """Fails all transfers, even those whose bytes are copied: ending a transfer here may touch its
        memory."""
        for transfer in self._running:
            transfer.fail(f"{self.name}: {reason}")

    def _outcome(self, transfer: FaultyTransfer) -> TransferStatus:
        if transfer.result.state is TransferState.FAILED:
            return transfer.result
        if transfer.failure:
            return TransferStatus(TransferState.FAILED, transfer.failure)
        if transfer.flip is not None:
            self._invert(transfer.flip)
        return transfer.result

    def _invert(self, byte: Spans) -> None:
        region = self._regions[byte.regions[0]]
        if region.memory.on_host:
            ctypes.c_ubyte.from_address(region.address + int(byte.offsets[0])).value ^= 0xFF
            return
        assert self._staging is not None, "the inner transport reaches the device"
        memory, found = RegionCopies(self._regions, self._staging.copies), np.empty(1, np.uint8)
        self._staging.outgoing(memory, byte, lambda packed: np.copyto(found, packed))
        self._staging.put(memory, byte, ~found)

    def _reason(self, fault: Fault) -> str:
        return f"{self.name}: injected fault: {fault}"


def _byte_to_flip(spans: Spans, draws: RuleDraws) -> Spans | None:
    filled = np.flatnonzero(spans.lengths)
    if not len(filled):
        return None
    piece = filled[draws.choose(len(filled))]
    place = spans.offsets[piece] + draws.choose(int(spans.lengths[piece]))
    return Spans(spans.regions[[piece]], np.array([place]), np.ones(1, np.int64))


def _with_a_piece_lost(batch: Batch, draws: RuleDraws) -> Batch:
    """Empties a piece. The source of a write stays unchanged, because its owner may be reading it."""
    filled = np.flatnonzero(batch.local.lengths)
    if not len(filled) or batch.local.lengths.shape != batch.remote.lengths.shape:
        return batch
    piece = filled[draws.choose(len(filled))]
    return Batch(_emptied(batch.local, piece), _emptied(batch.remote, piece))


def _emptied(spans: Spans, piece: int) -> Spans:
    lengths = spans.lengths.copy()
    lengths[piece] = 0
    return replace(spans, lengths=lengths)
