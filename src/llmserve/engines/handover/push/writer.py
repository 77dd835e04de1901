"""Writes batches into a peer's blocks, over the first transport that works."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmserve.core.errors import TransferError
from llmserve.engines.handover.io import HandoverIo
from llmserve.engines.handover.peers import Peer
from llmserve.transfer.base import Batch, TransferState
from llmserve.transfer.digest import digest

_SAMPLED_PIECES = 16

OnTrouble = Callable[[Peer, str, str], None]  # peer, transport, reason


@dataclass(slots=True)
class PushWriter:
    """Of one push. unclean: transports over which bytes may still arrive at the far end. transport: the
    last one that worked. seconds: spent writing and verifying."""

    io: HandoverIo
    on_trouble: OnTrouble
    unclean: set[str] = field(default_factory=set)
    transport: str = ""
    seconds: float = 0.0
    busy: bool = False  # a write is under way
    _pieces: int = 0  # written so far
    _sample: int = field(default_factory=lambda: random.randrange(_SAMPLED_PIECES))

    async def write(self, peer: Peer, batch: Batch) -> None:
        """Errors: TransferError with every reason."""
        self.busy = True
        try:
            await self._write_over_any(peer, batch)
        finally:
            self.busy = False

    async def _write_over_any(self, peer: Peer, batch: Batch) -> None:
        failures = []
        for name in peer.choice.ranked(time.monotonic()):
            try:
                await self._write_over(name, peer, batch)
                return
            except TransferError as error:
                reason = error.message
            failures.append(f"{name}: {reason}")
            if peer.lost.done():  # the worker's trouble, not the transport's
                break
            self.io.counters.of(name).failures += 1
            self.on_trouble(peer, name, reason)
        raise TransferError("; ".join(failures) or f"no transport in common with {peer.endpoint}")

    async def _write_over(self, name: str, peer: Peer, batch: Batch) -> None:
        if peer.lost.done():
            raise TransferError(peer.lost.result())
        started = time.monotonic()
        lane = peer.write_lane(name)
        self.unclean.add(name)
        status = await lane.move(batch)
        if status.state is not TransferState.DONE:
            raise TransferError(status.reason or "failed without a reason")
        self.unclean.discard(name)
        await self._verify(peer, batch)
        seconds = time.monotonic() - started
        self.transport, self.seconds = name, self.seconds + seconds
        peer.choice.moved(name, batch.local.total_bytes, seconds)

    async def _verify(self, peer: Peer, batch: Batch) -> None:
        """The peer digests what arrived, as much as `verify` of the manifest asks for."""
        chosen = self._chosen(len(batch.local.lengths))
        local = batch.local.cut(chosen)
        if len(local.lengths):
            await peer.verify(batch.remote.cut(chosen), digest(self.io.regions, local))

    def _chosen(self, count: int) -> slice:
        """Of the next `count` pieces: none, all, or every 16th counted over the whole push."""
        first, self._pieces = self._pieces, self._pieces + count
        match self.io.policy.verify:
            case "off":
                return slice(0, 0)
            case "always":
                return slice(0, count)
            case "sampled":
                return slice((self._sample - first) % _SAMPLED_PIECES, count, _SAMPLED_PIECES)
