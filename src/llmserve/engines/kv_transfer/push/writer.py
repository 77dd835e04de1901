"""Writes batches into a peer's blocks, over the first transport that works."""

import time
from dataclasses import dataclass, field
from functools import partial

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer.fallback import OnTransferFailed, over_any
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.peers import Peer
from llmserve.engines.kv_transfer.policy import Sample
from llmserve.transfer.base import Batch, TransferState
from llmserve.transfer.digest import digest


@dataclass(slots=True)
class PushWriter:
    """Of one push. unclean: transports over which bytes may still arrive at the far end. transport: the
    last one that worked. seconds: spent writing and verifying."""

    io: HandoverIo
    on_transfer_failed: OnTransferFailed
    unclean: set[str] = field(default_factory=set)
    transport: str = ""
    seconds: float = 0.0
    busy: bool = False  # a write is under way
    _sample: Sample = field(init=False)

    def __post_init__(self) -> None:
        self._sample = self.io.policy.sample()

    async def write(self, peer: Peer, batch: Batch) -> None:
        """Errors: TransferError with every reason."""
        self.busy = True
        try:
            attempt = partial(self._write_over, peer, batch)
            await over_any(peer, attempt, self.io.counters, self.on_transfer_failed, [])
        finally:
            self.busy = False

    async def _write_over(self, peer: Peer, batch: Batch, name: str) -> None:
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
        chosen = self._sample.take(len(batch.local.lengths))
        local = batch.local.cut(chosen)
        if len(local.lengths):
            await peer.verify(batch.remote.cut(chosen), digest(self.io.regions, local))
