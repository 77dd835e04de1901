"""The KV manager: the directory of blocks and the ledger of leases, cluster-wide. Pure.

Each worker reports over a connection. When that closes, the worker may be gone or may come back:
what it held is kept until its leases have run out and a little longer, then written off. A newer
incarnation replaces an older at once: the older one's memory is gone with its process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash, WorkerId
from llmserve.core.lease import LeaseChange, LeaseState
from llmserve.kvstore.directory.directory import Applied, BlockReport, Directory, Holder, HolderRun, KvTier
from llmserve.kvstore.directory.ledger import LeaseLedger
from llmserve.kvstore.directory.watcher import Watcher

# A worker whose stream merely broke is back well within this.
_RETURN_SECONDS = 5.0


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
    """Since start."""

    reports: int = 0
    resyncs: int = 0
    released: int = 0
    expired: int = 0
    written_off: int = 0


class ReportStream:
    """One report stream of a worker. Two are never equal."""


@dataclass(slots=True)
class _Worker:
    epoch: int
    ledger: LeaseLedger
    connection: ReportStream
    gone_at: float | None = field(default=None)  # None: connected


class KVManager:
    """What is overdue is settled before it is looked at; and by `settle` now and then, for the watchers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._directory = Directory()
        self._workers: dict[WorkerId, _Worker] = {}
        self._watchers: list[Watcher] = []
        self.totals = ManagerTotals()

    def __repr__(self) -> str:
        return f"<KVManager {self._directory!r} open_leases={self.open_leases}>"

    # -- what workers say

    def report(self, connection: ReportStream, blocks: BlockReport, leases: Sequence[LeaseChange]) -> Ack:
        """Of the device cache of a worker. Tiers have no leases: `report_tier`."""
        assert blocks.holder.tier is KvTier.DEVICE, blocks.holder
        applied = self._apply(blocks)
        if applied is Applied.APPLIED:
            self._apply_leases(self._worker(connection, blocks), leases, snapshot=blocks.snapshot)
        self.totals.reports += applied is Applied.APPLIED
        self.totals.resyncs += applied is Applied.RESYNC
        return Ack(blocks.sequence, resync=applied is Applied.RESYNC)

    def report_tier(self, blocks: BlockReport) -> Applied:
        """Of a tier of this KV manager or another. RESYNC: a snapshot of the tier is needed."""
        assert blocks.holder.tier is not KvTier.DEVICE, blocks.holder
        return self._apply(blocks)

    def disconnect(self, connection: ReportStream) -> None:
        """Idempotent. Nothing for a worker that reports over a newer connection."""
        for worker in self._workers.values():
            if worker.connection is connection and worker.gone_at is None:
                worker.gone_at = self._clock.now()

    # -- replicas

    def watch(self, changed: Callable[[], object]) -> Watcher:
        """Of all that is known now and changes from now on, until `unwatch`."""
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

    # -- what others ask

    def prefix_blocks(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """For each worker that holds the first block: how many leading ones it holds."""
        self.settle()
        prefix = self._directory.prefix_blocks(hashes)
        return {WorkerId(at.node): blocks for at, blocks in prefix.items() if at.tier is KvTier.DEVICE}

    def runs(self, hashes: Sequence[BlockHash]) -> list[HolderRun]:
        """The leading blocks that some device cache or tier holds, and who holds them."""
        self.settle()
        return self._directory.runs(hashes)

    def workers(self) -> list[WorkerKv]:
        self.settle()
        return [
            WorkerKv(
                worker_id,
                worker.epoch,
                self._directory.blocks_of(Holder(worker_id)),
                worker.ledger.open_leases,
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
        return sum(worker.ledger.open_leases for worker in self._workers.values())

    @property
    def leased_blocks(self) -> int:
        self.settle()
        return sum(worker.ledger.leased_blocks for worker in self._workers.values())

    @property
    def orphan_blocks(self) -> int:
        """Blocks leased past their expiry, or by a worker that is gone, and not yet written off."""
        self.settle()
        return sum(self._orphans(worker) for worker in self._workers.values())

    @property
    def connected_workers(self) -> int:
        return sum(worker.gone_at is None for worker in self._workers.values())

    def settle(self) -> None:
        """Writes off the workers that have been gone for long enough."""
        now = self._clock.now()
        for worker_id, worker in list(self._workers.items()):
            if worker.gone_at is not None and self._write_off_at(worker) <= now:
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
            worker = _Worker(report.epoch, LeaseLedger(self._clock), connection)
            self._workers[worker_id] = worker
        worker.connection, worker.gone_at = connection, None
        return worker

    def _apply_leases(self, worker: _Worker, leases: Sequence[LeaseChange], *, snapshot: bool) -> None:
        if snapshot:
            self.totals.written_off += worker.ledger.replace(leases)
            return
        ended = worker.ledger.apply(leases)
        self.totals.released += ended.count(LeaseState.RELEASED)
        self.totals.expired += ended.count(LeaseState.EXPIRED)

    def _orphans(self, worker: _Worker) -> int:
        gone = worker.gone_at is not None
        return worker.ledger.leased_blocks if gone else worker.ledger.overdue_blocks()

    def _write_off_at(self, worker: _Worker) -> float:
        assert worker.gone_at is not None
        return max(worker.gone_at + _RETURN_SECONDS, worker.ledger.last_expiry())

    def _write_off(self, worker: _Worker) -> None:
        self.totals.written_off += worker.ledger.open_leases
