"""One pull, from every rank of the owner that has heads of ours, at once: begin (the lease is checked and
renewed) -> read over the first transport that works -> release. Only when every release finds its lease still
valid do the data count.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from llmserve.core.errors import TransferError
from llmserve.core.ids import RequestId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer.layout.heads import Source, sources
from llmserve.engines.kv_transfer.peers import Peer, PeerDirectory
from llmserve.engines.kv_transfer.protocol import BeginRead, ReleaseLease, RenewLease
from llmserve.engines.kv_transfer.rank import PullResult, RankEngine, reached
from llmserve.transfer.base import Batch
from llmserve.transfer.devices import REACHED, Mark

_log = logging.getLogger(__name__)
_RENEWALS_PER_LEASE = 3


@dataclass(frozen=True, slots=True)
class PullLimits:
    """total_seconds: the whole pull, all fallbacks included. connects: how often a side channel that
    breaks during a pull is opened. grant_seconds: for the owner to grant the lease and to write its blocks,
    whose kernels may stand behind a step of another prompt."""

    total_seconds: float = 30.0
    connects: int = 2
    grant_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class PullJob:
    """Copy the KV of these tokens of the prompt, all layers, into local blocks, which begin with that of the
    first token, or later in a group whose window has left it behind."""

    request_id: RequestId
    pull_params: PullParams
    tokens: range
    local: BlockTable


@dataclass(slots=True)
class Pull:
    """A pull while it runs, on the loop of its engine. free: the mark behind the kernels that may still use
    the local blocks."""

    job: PullJob
    limits: PullLimits
    engine: RankEngine
    peers: PeerDirectory
    free: Mark = REACHED
    started: float = field(default_factory=time.monotonic)
    transport: str = ""
    bytes: int = 0
    fallbacks: list[str] = field(default_factory=list)

    async def run(self) -> PullResult:
        """Never raises, also when it is cancelled. Local memory is no longer touched afterwards."""
        try:
            async with asyncio.timeout(self.limits.total_seconds):
                await self._fetch()
        except TimeoutError:
            return self._result(f"not done within {self.limits.total_seconds:g} s")
        except asyncio.CancelledError:
            return self._result("cancelled")
        except TransferError as error:
            return self._result(error.message)
        except Exception as error:
            _log.exception("pull of %s failed", self.job.request_id)
            return self._result(repr(error))
        return self._result("")

    def _result(self, reason: str) -> PullResult:
        return PullResult(
            request_id=self.job.request_id,
            transport=self.transport,
            bytes=0 if reason else self.bytes,
            seconds=time.monotonic() - self.started,
            reason=reason,
            fallbacks=tuple(self.fallbacks),
        )

    async def _fetch(self) -> None:
        """The first rank to fail ends the others' reads. Errors: TransferError."""
        shard, ranks = self.engine.layout.geometry.shard, len(self.job.pull_params.endpoints)
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources(shard, ranks):
                    group.create_task(self._fetch_from(source), name=f"pull from rank {source.rank}")
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _fetch_from(self, source: Source) -> None:
        """Errors: TransferError with every reason."""
        for attempt in range(self.limits.connects):
            peer = await self.peers.get(self.job.pull_params.address(source.rank))
            try:
                await self._read_validated(peer, source)
                return
            except TransferError as error:
                if not peer.lost.done() or attempt == self.limits.connects - 1:
                    raise
                self.fallbacks.append(f"side channel: {error.message}")

    async def _read_validated(self, peer: Peer, source: Source) -> None:
        pull_params = self.job.pull_params
        if source.heads:
            batch = self._batch(peer, source)
            begin = BeginRead(pull_params.lease_id, pull_params.epoch)
            await peer.demand(begin, self.limits.grant_seconds)
            renewing = self.engine.spawn("keep", renewals(peer, pull_params))
            try:
                await reached(self.free)
                await self._read_over_any(peer, batch)
            finally:
                renewing.cancel()
        rank = self.engine.layout.geometry.shard.rank
        await peer.demand(ReleaseLease(pull_params.lease_id, pull_params.epoch, rank, source.readers))

    def _batch(self, peer: Peer, source: Source) -> Batch:
        """Errors: TransferError when what the request says of its owner's shape are not the owner's."""
        job, layout, theirs = self.job, self.engine.layout, peer.geometry
        expected = replace(
            layout.geometry.shard, tensor_parallel=len(job.pull_params.endpoints), rank=source.rank
        )
        if (theirs.shard, theirs.block_size_tokens) != (expected, job.pull_params.block_size_tokens):
            raise TransferError(
                f"{peer.endpoint} is not what the request says: {theirs.shard} for {expected}"
            )
        return layout.batch_from(theirs, source.heads, job.tokens, job.local, job.pull_params.blocks)

    async def _read_over_any(self, peer: Peer, batch: Batch) -> None:
        failures: list[str] = []
        try:
            await peer.pair.over_any(partial(self._read_over, peer, batch), failures)
        finally:
            self.fallbacks += failures

    async def _read_over(self, peer: Peer, batch: Batch, name: str) -> None:
        sample = self.engine.policy.sample(len(batch.local.lengths))
        with peer.comparing(batch, sample) as compare:
            seconds = await peer.pair.read(name, batch, compare)
        size_bytes = batch.local.total_bytes
        self.transport = name
        self.bytes += size_bytes
        self.engine.counters.count_pull(name, size_bytes, seconds)


async def renewals(peer: Peer, pull_params: PullParams) -> None:
    """Renews a lease until it or its owner is gone, or the caller cancels."""
    with suppress(TransferError):  # whoever reads finds out when it validates
        while True:
            await asyncio.sleep(pull_params.lease_seconds / _RENEWALS_PER_LEASE)
            await peer.demand(RenewLease(pull_params.lease_id, pull_params.epoch))
