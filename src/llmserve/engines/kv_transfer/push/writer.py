"""Writes batches into a peer's blocks, over the first transport that works."""

from dataclasses import dataclass, field
from functools import partial

from llmserve.engines.kv_transfer.peers import Peer
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.transfer.base import Batch
from llmserve.transfer.digest import digest
from llmserve.transfer.engine.choice import Sample


@dataclass(slots=True)
class PushWriter:
    """Writes for one push. unclean: transports over which bytes may still arrive at the far end. transport:
    the last one that worked. seconds: time spent writing and verifying."""

    engine: RankEngine
    unclean: set[str] = field(default_factory=set)
    transport: str = ""
    seconds: float = 0.0
    busy: bool = False  # a write is under way
    _sample: Sample = field(init=False)

    def __post_init__(self) -> None:
        self._sample = self.engine.policy.sample()

    async def write(self, peer: Peer, batch: Batch) -> None:
        """Errors: TransferError with every reason."""
        self.busy = True
        try:
            await peer.pair.over_any(partial(self._write_over, peer, batch), [])
        finally:
            self.busy = False

    async def _write_over(self, peer: Peer, batch: Batch, name: str) -> None:
        check = partial(self._verify, peer, batch)
        self.seconds += await peer.pair.write(name, batch, check, self.unclean)
        self.transport = name

    async def _verify(self, peer: Peer, batch: Batch) -> None:
        """The peer digests what arrived, as much as `verify` of the manifest asks for."""
        chosen = self._sample.take(len(batch.local.lengths))
        local = batch.local.cut(chosen)
        if len(local.lengths):
            await peer.verify(batch.remote.cut(chosen), digest(self.engine.regions, local))
