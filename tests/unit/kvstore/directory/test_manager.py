import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, LeaseId, WorkerId
from llmserve.core.request import LeaseChange, LeaseState
from llmserve.kvstore.directory.directory import Applied, BlockReport, Holder, KvTier
from llmserve.kvstore.directory.manager import Ack, KVManager, ReportStream

X = WorkerId("x")


def _granted(name: str, blocks: int = 4, seconds: float = 30.0) -> LeaseChange:
    return LeaseChange(LeaseId(name), LeaseState.GRANTED, blocks, seconds)


def _ended(name: str, how: LeaseState) -> LeaseChange:
    return LeaseChange(LeaseId(name), how, 4)


class Cluster:
    """One worker that reports to a manager."""

    def __init__(self) -> None:
        self.clock = VirtualClock(50.0)
        self.manager = KVManager(self.clock)
        self.connection = ReportStream()
        self.sequence = 0

    def report(self, *leases: LeaseChange, snapshot: bool = False, epoch: int = 1) -> Ack:
        self.sequence += 1
        blocks = BlockReport(Holder(X), epoch, self.sequence, snapshot, stored=[BlockHash(b"h")])
        return self.manager.report(self.connection, blocks, leases)

    def orphans_after(self, seconds: float) -> int:
        self.clock.advance(seconds)
        return self.manager.orphan_blocks


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.report(snapshot=True)
    return cluster


def test_leases_open_and_end(cluster: Cluster) -> None:
    cluster.report(_granted("a"), _granted("b"), _granted("c", blocks=1))
    assert (cluster.manager.open_leases, cluster.manager.leased_blocks) == (3, 9)
    cluster.report(_ended("a", LeaseState.RELEASED), _ended("b", LeaseState.EXPIRED))
    cluster.report(_ended("a", LeaseState.EXPIRED))  # it has ended: not counted again
    assert (cluster.manager.open_leases, cluster.manager.leased_blocks) == (1, 1)
    assert (cluster.manager.totals.released, cluster.manager.totals.expired) == (1, 1)


def test_a_lease_past_its_expiry_is_an_orphan_until_its_end_is_told(cluster: Cluster) -> None:
    cluster.report(_granted("a", seconds=10.0))
    assert cluster.orphans_after(10.9) == 0  # the report may be on its way
    assert cluster.orphans_after(0.1) == 4
    cluster.report(_ended("a", LeaseState.EXPIRED))
    assert cluster.manager.orphan_blocks == 0


def test_a_renewed_lease_is_no_orphan(cluster: Cluster) -> None:
    cluster.report(_granted("a", seconds=10.0))
    cluster.clock.advance(8)
    cluster.report(_granted("a", seconds=10.0))
    assert cluster.orphans_after(8.0) == 0
    assert cluster.manager.open_leases == 1


def test_leases_of_a_gone_worker_are_orphans_until_written_off(cluster: Cluster) -> None:
    cluster.report(_granted("a", seconds=10.0))
    cluster.manager.disconnect(cluster.connection)
    assert cluster.manager.orphan_blocks == 4
    assert cluster.orphans_after(9.9) == 4
    assert cluster.manager.prefix_blocks([BlockHash(b"h")]) == {"x": 1}
    assert cluster.orphans_after(0.1) == 0
    assert cluster.manager.totals.written_off == 1
    assert cluster.manager.workers() == []
    assert cluster.manager.directory_blocks == 0


def test_a_worker_that_comes_back_keeps_its_leases(cluster: Cluster) -> None:
    cluster.report(_granted("a"), _granted("b"))
    cluster.manager.disconnect(cluster.connection)
    cluster.clock.advance(4.9)  # without leases it would be kept for five seconds
    late, cluster.connection = cluster.connection, ReportStream()
    cluster.report(_granted("a", seconds=25.0), snapshot=True)
    cluster.manager.disconnect(late)  # the old stream's end is noticed late
    (worker,) = cluster.manager.workers()
    assert (worker.connected, worker.open_leases, worker.device_blocks) == (True, 1, 1)
    assert cluster.manager.orphan_blocks == 0
    assert cluster.manager.totals.written_off == 1  # b is not in the snapshot


def test_a_new_incarnation_writes_the_older_ones_leases_off(cluster: Cluster) -> None:
    cluster.report(_granted("a"))
    cluster.manager.disconnect(cluster.connection)
    cluster.connection, cluster.sequence = ReportStream(), 0
    cluster.report(snapshot=True, epoch=2)
    assert cluster.manager.orphan_blocks == 0
    assert cluster.manager.open_leases == 0
    assert cluster.manager.totals.written_off == 1
    assert cluster.manager.connected_workers == 1


def test_a_missing_report_asks_for_a_snapshot(cluster: Cluster) -> None:
    cluster.sequence += 1
    assert cluster.report(_granted("a")) == Ack(3, resync=True)
    assert cluster.manager.open_leases == 0
    assert cluster.report(_granted("a"), snapshot=True) == Ack(4, resync=False)
    assert cluster.manager.open_leases == 1
    assert (cluster.manager.totals.reports, cluster.manager.totals.resyncs) == (2, 1)


def test_a_gone_worker_without_leases_is_kept_for_five_seconds(cluster: Cluster) -> None:
    cluster.manager.disconnect(cluster.connection)
    cluster.manager.disconnect(cluster.connection)
    cluster.clock.advance(4.9)
    cluster.manager.disconnect(cluster.connection)  # not counted from now
    assert len(cluster.manager.workers()) == 1
    cluster.clock.advance(0.1)
    cluster.manager.settle()
    assert cluster.manager.workers() == []


def test_tiers_are_looked_up_beside_the_device_caches(cluster: Cluster) -> None:
    dram = Holder("kvmanager-0", KvTier.DRAM)
    stored = [BlockHash(b"h"), BlockHash(b"i")]
    cluster.manager.report_tier(BlockReport(dram, 1, 1, snapshot=True, stored=stored))
    assert cluster.manager.prefix_blocks(stored) == {"x": 1}  # workers only
    assert len(cluster.manager.workers()) == 1
    assert cluster.manager.report_tier(BlockReport(dram, 1, 3)) is Applied.RESYNC
