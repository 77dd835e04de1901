"""The KV manager: the directory of blocks and the leases of workers, cluster-wide. Pure.

Each worker reports over a stream. When the stream ends, the worker may be gone or may come back: the manager
keeps what it held until its leases have run out and a little longer, then writes it off. A newer incarnation
replaces an older one at once, because the older one's memory has gone with its process.

The worker's own table of leases decides; the manager's copy shows, cluster-wide, whether any lease was left
behind.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash, LeaseId, WorkerId
from llmserve.core.lease_table import LeaseTable
from llmserve.core.request import LeaseChange, LeaseState
from llmserve.kvstore.directory.directory import Applied, BlockReport, Directory, Holder, KvTier
from llmserve.kvstore.directory.watcher import Watcher

# A worker whose stream merely broke is back well within this.
_RETURN_SECONDS = 5.0
# The report of an expiry comes a little after it: only a lease that is overdue for longer is an orphan.
_REPORT_SLACK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: int
    resync: bool


@dataclass(frozen=True, slots=True)
class WorkerKv:
    worker_id: WorkerId
    epoch: int
    device_blocks: int
    open_leases: int
    connected: bool


@dataclass(slots=True)
class ManagerTotals:
    """Totals since the start."""

    reports: int = 0
    resyncs: int = 0
    released: int = 0
    expired: int = 0
    written_off: int = 0


class ReportStream:
    """Identity of one report stream of a worker."""


class _Leases:
    """The open leases that one worker incarnation has reported, with their blocks."""

    def __init__(self, clock: Clock) -> None:
        self.open: LeaseTable[LeaseId, int] = LeaseTable(clock, remembered_ends=0)

    @property
    def blocks(self) -> int:
        return sum(self.open.values())

    def apply(self, changes: Iterable[LeaseChange]) -> list[LeaseState]:
        """Returns how each lease that ended did. A renewal is a GRANTED again."""
        ended: list[LeaseState] = []
        for change in changes:
            if change.state is LeaseState.GRANTED:
                self.open.grant(change.lease_id, change.blocks, change.remaining_seconds)
            elif change.lease_id in self.open:
                self.open.release(change.lease_id)
                ended.append(change.state)
        return ended

    def replace(self, changes: Iterable[LeaseChange]) -> int:
        """Takes a snapshot of all open leases. Returns how many were open before and no longer are."""
        before = set(self.open)
        for lease_id in before:
            self.open.release(lease_id)
        self.apply(changes)
        return len(before - self.open.keys())

    def overdue_blocks(self, slack_seconds: float) -> int:
        """Blocks of leases that should have ended so long ago, and whose end was not reported."""
        overdue = (key for key in self.open if self.open.remaining_seconds(key) <= -slack_seconds)
        return sum(self.open[key] for key in overdue)

    def all_overdue(self) -> bool:
        return all(self.open.remaining_seconds(key) <= 0 for key in self.open)


@dataclass(slots=True)
class _Worker:
    epoch: int
    leases: _Leases
    connection: ReportStream
    gone_at: float | None = field(default=None)  # None: connected


class KVManager:
    """Every question ends what is overdue first; `settle` does so between questions, for the watchers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._directory = Directory()
        self._workers: dict[WorkerId, _Worker] = {}
        self._watchers: list[Watcher] = []
        self.totals = ManagerTotals()

    def __repr__(self) -> str:
        return f"<KVManager {self._directory!r} open_leases={self.open_leases}>"

    # -- reports

    def report(self, connection: ReportStream, blocks: BlockReport, leases: Sequence[LeaseChange]) -> Ack:
        """Takes a report of a worker's device cache and leases."""
        assert blocks.holder.tier is KvTier.DEVICE, blocks.holder
        applied = self._apply(blocks)
        if applied is Applied.APPLIED:
            self._apply_leases(self._worker(connection, blocks), leases, snapshot=blocks.snapshot)
        self.totals.reports += applied is Applied.APPLIED
        self.totals.resyncs += applied is Applied.RESYNC
        return Ack(blocks.sequence, resync=applied is Applied.RESYNC)

    def report_tier(self, blocks: BlockReport) -> Applied:
        """Takes a report of a tier of this KV manager. RESYNC: a snapshot of the tier is needed."""
        assert blocks.holder.tier is not KvTier.DEVICE, blocks.holder
        return self._apply(blocks)

    def disconnect(self, connection: ReportStream) -> None:
        """Idempotent. Ignored for a worker that reports over a newer stream."""
        for worker in self._workers.values():
            if worker.connection is connection and worker.gone_at is None:
                worker.gone_at = self._clock.now()

    # -- replicas

    def watch(self, changed: Callable[[], object]) -> Watcher:
        """A watcher of the present state and of all changes until `unwatch`."""
        self.settle()
        self._watchers.append(Watcher(self._directory, changed))
        return self._watchers[-1]

    def unwatch(self, watcher: Watcher) -> None:
        """Idempotent."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    # -- questions

    def prefix_blocks(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Number of leading blocks that each worker with the first block holds."""
        self.settle()
        prefix = self._directory.prefix_blocks(hashes)
        return {WorkerId(at.node): blocks for at, blocks in prefix.items() if at.tier is KvTier.DEVICE}

    def workers(self) -> list[WorkerKv]:
        self.settle()
        return [
            WorkerKv(
                worker_id,
                worker.epoch,
                self._directory.blocks_of(Holder(worker_id)),
                len(worker.leases.open),
                connected=worker.gone_at is None,
            )
            for worker_id, worker in self._workers.items()
        ]

    @property
    def directory_blocks(self) -> int:
        self.settle()
        return len(self._directory)

    @property
    def open_leases(self) -> int:
        self.settle()
        return sum(len(worker.leases.open) for worker in self._workers.values())

    @property
    def leased_blocks(self) -> int:
        self.settle()
        return sum(worker.leases.blocks for worker in self._workers.values())

    @property
    def orphan_blocks(self) -> int:
        """Blocks that are leased past their expiry, or by a worker that is gone and not yet written off."""
        self.settle()
        return sum(self._orphans(worker) for worker in self._workers.values())

    @property
    def connected_workers(self) -> int:
        return sum(worker.gone_at is None for worker in self._workers.values())

    def settle(self) -> None:
        """Writes off the workers that have been gone for long enough."""
        for worker_id, worker in list(self._workers.items()):
            if self._is_gone_for_good(worker):
                self._write_off(self._workers.pop(worker_id))
                self._drop(Holder(worker_id))

    # -- parts

    def _apply(self, report: BlockReport) -> Applied:
        applied = self._directory.apply(report)
        if applied is Applied.APPLIED:
            for watcher in self._watchers:
                watcher.applied(report)
        return applied

    def _drop(self, holder: Holder) -> None:
        self._directory.drop(holder)
        for watcher in self._watchers:
            watcher.dropped(holder)

    def _worker(self, connection: ReportStream, report: BlockReport) -> _Worker:
        worker_id = WorkerId(report.holder.node)
        worker = self._workers.get(worker_id)
        if worker is None or worker.epoch != report.epoch:
            if worker:
                self._write_off(worker)
            worker = _Worker(report.epoch, _Leases(self._clock), connection)
            self._workers[worker_id] = worker
        worker.connection, worker.gone_at = connection, None
        return worker

    def _apply_leases(self, worker: _Worker, leases: Sequence[LeaseChange], *, snapshot: bool) -> None:
        if snapshot:
            self.totals.written_off += worker.leases.replace(leases)
            return
        ended = worker.leases.apply(leases)
        self.totals.released += ended.count(LeaseState.RELEASED)
        self.totals.expired += ended.count(LeaseState.EXPIRED)

    def _orphans(self, worker: _Worker) -> int:
        gone = worker.gone_at is not None
        return worker.leases.blocks if gone else worker.leases.overdue_blocks(_REPORT_SLACK_SECONDS)

    def _is_gone_for_good(self, worker: _Worker) -> bool:
        if worker.gone_at is None or self._clock.now() < worker.gone_at + _RETURN_SECONDS:
            return False
        return worker.leases.all_overdue()

    def _write_off(self, worker: _Worker) -> None:
        self.totals.written_off += len(worker.leases.open)
