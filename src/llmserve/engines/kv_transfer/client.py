"""The pulling end: fetches the blocks of pull_params into this process's KV memory, and keeps the leases
of those alive that wait.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.kv_params import PeerAddress, PullParams
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer.layout.heads import sources
from llmserve.engines.kv_transfer.peers import PeerDirectory, Prober
from llmserve.engines.kv_transfer.protocol import ReleaseLease, RenewLease
from llmserve.engines.kv_transfer.pull import Pull, PullJob, PullLimits, renewals
from llmserve.engines.kv_transfer.rank import PullResult, RankEngine, Results
from llmserve.transfer.devices import REACHED, Mark

_log = logging.getLogger(__name__)
_SETTLE_SECONDS = 10.0


class HandoverClient:
    """Methods without underscore may be called from any thread and never wait for the network."""

    def __init__(
        self,
        engine: RankEngine,
        limits: PullLimits | None = None,
        unusable: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """unusable: see HandoverNode. Pushes use the attributes without underscore, on the loop."""
        self._engine = engine
        self.limits = limits or PullLimits()
        self.peers = PeerDirectory(engine)
        self._prober = Prober(engine, self.peers, unusable)
        engine.post(self._prober.start)
        self._results = Results(engine.note_change)
        self._pulls: dict[RequestId, asyncio.Task[None]] = {}
        self._watches: dict[LeaseId, asyncio.Task[None]] = {}
        self._closed = False

    # -- the engine

    def pull(self, job: PullJob, free: Mark = REACHED) -> None:
        """Starts a pull and ends a watch. Its result comes from take_finished, exactly once. free: local
        blocks are written once it is reached.
        Errors: TransferError when the request is being pulled already, or after `close`."""
        if not self._results.begin(job.request_id):
            raise TransferError(f"request {job.request_id} is being pulled already")
        pull = Pull(job, self.limits, self._engine, self.peers, free)
        try:
            self._engine.post(lambda: self._start(pull))
        except TransferError:
            self._results.drop(job.request_id)
            raise

    def cancel(self, request_id: RequestId) -> None:
        """Ends a pull. Its result still comes, once local memory is no longer touched. Unknown ids are
        ignored."""
        self._engine.act(lambda: self._cancel(request_id))

    def take_finished(self) -> list[PullResult]:
        """Returns each result once. The engine polls this."""
        return self._results.take()

    @property
    def active_count(self) -> int:
        """Number of pulls without a result."""
        return self._results.active_count

    def watch(self, pull_params: PullParams) -> None:
        """Renews the lease, at once and thrice per lease, until unwatch, release, pull or its end."""
        self._engine.act(lambda: self._watch(pull_params))

    def unwatch(self, pull_params: PullParams) -> None:
        self._engine.act(lambda: self._unwatch(pull_params))

    def set_peers(self, addresses: Sequence[PeerAddress]) -> None:
        """Names all peers to pull from: each is connected to and probed before the first pull."""
        self._engine.act(lambda: self._prober.set_peers(addresses))

    def pairs(self) -> list[PairStatus]:
        """Rows of the matrix, for status and metrics."""
        return self._prober.rows()

    def release(self, pull_params: PullParams) -> None:
        """Gives back blocks that nobody will fetch. Best effort; ends a watch."""
        self._engine.act(lambda: self._release(pull_params))

    def close(self) -> None:
        """Cancels every pull, forgets watches, hangs up. Idempotent; before the engine's `close`."""
        if not self._closed and not self._engine.closed:
            self._closed = True
            self._engine.call(self._aclose())

    # -- on the loop

    def _start(self, pull: Pull) -> None:
        job = pull.job
        self._unwatch(job.pull_params)
        task = self._engine.spawn(f"pull {job.request_id}", self._pull(pull))
        self._pulls[job.request_id] = task
        task.add_done_callback(lambda ended: self._conclude_unstarted(pull, ended))
        if self._closed:
            self._cancel(job.request_id)

    async def _pull(self, pull: Pull) -> None:
        self._conclude(pull, await pull.run())

    def _conclude_unstarted(self, pull: Pull, task: asyncio.Task[None]) -> None:
        """Concludes a pull whose task was cancelled before its first step: nothing of its body has run."""
        request_id = pull.job.request_id
        if self._pulls.get(request_id) is task:
            self._conclude(pull, PullResult(request_id, "cancelled"))

    def _conclude(self, pull: Pull, result: PullResult) -> None:
        self._pulls.pop(result.request_id, None)
        if not result.ok:
            self._engine.counters.failed_pulls += 1
            self._give_back_later(pull.job.pull_params)
        _log.info("kv pull %s: %s", "complete" if result.ok else "failed", result)
        self._results.conclude(result)

    def _cancel(self, request_id: RequestId) -> None:
        if pull := self._pulls.get(request_id):
            pull.cancel()

    def _watch(self, pull_params: PullParams) -> None:
        self._unwatch(pull_params)
        self._watches[pull_params.lease_id] = self._engine.spawn("watch", self._keep_all_alive(pull_params))

    def _unwatch(self, pull_params: PullParams) -> None:
        if watch := self._watches.pop(pull_params.lease_id, None):
            watch.cancel()

    def _release(self, pull_params: PullParams) -> None:
        self._unwatch(pull_params)
        self._give_back_later(pull_params)

    def _give_back_later(self, pull_params: PullParams) -> None:
        if not self._closed:
            self._engine.spawn("give back", self._at_each_rank(pull_params, self._give_back))

    async def _at_each_rank(
        self, pull_params: PullParams, act: Callable[[PullParams, int], Coroutine[None, None, None]]
    ) -> None:
        """Acts at each rank of the owner that this rank deals with."""
        try:
            shard = self._engine.layout.geometry.shard
            ranks = [source.rank for source in sources(shard, len(pull_params.endpoints))]
        except TransferError as error:
            _log.info("lease %s cannot be reached: %s", pull_params.lease_id, error.message)
            return
        await asyncio.gather(*(act(pull_params, rank) for rank in ranks))

    async def _keep_all_alive(self, pull_params: PullParams) -> None:
        try:
            await self._at_each_rank(pull_params, self._keep_alive)
        finally:
            if self._watches.get(pull_params.lease_id) is asyncio.current_task():
                del self._watches[pull_params.lease_id]

    async def _keep_alive(self, pull_params: PullParams, rank: int) -> None:
        try:
            peer = await self.peers.get(pull_params.address(rank))
            await peer.demand(RenewLease(pull_params.lease_id, pull_params.epoch))
            await renewals(peer, pull_params)
        except TransferError as error:
            _log.info("lease %s is no longer renewed: %s", pull_params.lease_id, error.message)

    async def _give_back(self, pull_params: PullParams, rank: int) -> None:
        try:
            peer = await self.peers.get(pull_params.address(rank))
            await peer.lease(ReleaseLease(pull_params.lease_id, pull_params.epoch))
        except TransferError as error:
            _log.info("lease %s was not given back: %s", pull_params.lease_id, error.message)

    async def _aclose(self) -> None:
        tasks = [*self._pulls.values(), *self._watches.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)
        self.peers.close()
