"""What the KV manager is told: a snapshot, then changes, numbered without gaps."""

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import LeaseId
from llmserve.core.request import KvEvents, LeaseChange, LeaseState
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2
from llmserve.workers.reporter import DeviceHoldings


def granted(name: str, seconds: float = 30.0) -> LeaseChange:
    return LeaseChange(LeaseId(name), LeaseState.GRANTED, 3, seconds)


def ended(name: str, state: LeaseState = LeaseState.RELEASED) -> LeaseChange:
    return LeaseChange(LeaseId(name), state, 3)


def leases_of(report: kvmanager_pb2.KvReport) -> list[tuple[str, str, float]]:
    states = kvmanager_pb2.LeaseState
    return [(one.lease_id, states.Name(one.state), one.remaining_seconds) for one in report.leases]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def holdings(clock: VirtualClock) -> DeviceHoldings:
    return DeviceHoldings("decode-0", 7, clock)


def test_a_snapshot_is_the_whole_truth(holdings: DeviceHoldings, clock: VirtualClock) -> None:
    holdings.apply(KvEvents(stored=(b"a", b"b"), leases=(granted("l"), granted("m"))))
    holdings.apply(KvEvents(removed=(b"a",), leases=(ended("m"),)))
    clock.advance(10.0)
    report = holdings.take()
    assert (report.worker_id, report.epoch, report.sequence) == ("decode-0", 7, 1)
    assert (report.snapshot, report.cleared) == (True, False)
    assert (list(report.stored), list(report.removed)) == ([b"b"], [])
    assert leases_of(report) == [("l", "LEASE_STATE_GRANTED", 20.0)]
    assert report.leases[0].blocks == 3
    assert not holdings.has_changes


def test_an_overdue_lease_is_open_until_its_engine_says_so(
    holdings: DeviceHoldings, clock: VirtualClock
) -> None:
    holdings.apply(KvEvents(leases=(granted("l", 5.0),)))
    clock.advance(6.0)
    assert leases_of(holdings.take()) == [("l", "LEASE_STATE_GRANTED", 0.0)]
    holdings.apply(KvEvents(leases=(ended("l", LeaseState.EXPIRED),)))
    holdings.resync()
    assert leases_of(holdings.take()) == []


def test_changes_since_the_last_report_merge(holdings: DeviceHoldings) -> None:
    holdings.take()
    holdings.apply(KvEvents(stored=(b"a", b"b"), leases=(granted("l"),)))
    holdings.apply(KvEvents(removed=(b"a",), stored=(b"c",), leases=(ended("l"),)))
    assert holdings.has_changes
    report = holdings.take()
    assert (report.sequence, report.snapshot, report.cleared) == (2, False, False)
    assert (list(report.stored), list(report.removed)) == ([b"b", b"c"], [b"a"])
    assert leases_of(report) == [("l", "LEASE_STATE_GRANTED", 30.0), ("l", "LEASE_STATE_RELEASED", 0.0)]
    assert not holdings.has_changes


def test_a_change_of_a_lease_alone_is_a_change(holdings: DeviceHoldings) -> None:
    holdings.take()
    holdings.apply(KvEvents(leases=(ended("unknown"),)))
    assert holdings.has_changes
    assert leases_of(holdings.take()) == [("unknown", "LEASE_STATE_RELEASED", 0.0)]
    assert not holdings.take().leases


def test_a_block_that_went_and_came_back_is_there(holdings: DeviceHoldings) -> None:
    holdings.apply(KvEvents(stored=(b"a",)))
    holdings.take()
    holdings.apply(KvEvents(removed=(b"a",)))
    holdings.apply(KvEvents(stored=(b"a",)))
    assert replay({b"a"}, holdings.take()) == {b"a"}


def test_clearing_forgets_what_was_pending(holdings: DeviceHoldings) -> None:
    holdings.take()
    holdings.apply(KvEvents(stored=(b"a",), leases=(granted("l"),)))
    holdings.apply(KvEvents(cleared=True, stored=(b"b",)))
    report = holdings.take()
    assert (report.cleared, report.snapshot) == (True, False)
    assert (list(report.stored), list(report.removed)) == ([b"b"], [])
    assert len(report.leases) == 1, "leases outlive what is cleared"
    holdings.resync()
    assert list(holdings.take().stored) == [b"b"]


def test_a_snapshot_on_request_has_everything(holdings: DeviceHoldings) -> None:
    holdings.apply(KvEvents(stored=(b"a",)))
    holdings.take()
    holdings.apply(KvEvents(stored=(b"b",)))
    holdings.resync()
    report = holdings.take()
    assert (report.sequence, report.snapshot, sorted(report.stored)) == (2, True, [b"a", b"b"])
    assert not holdings.take().snapshot


def replay(known: set[bytes], report: kvmanager_pb2.KvReport) -> set[bytes]:
    """As the manager does: cleared, removed, stored."""
    kept = set() if report.cleared else known
    return (kept - set(report.removed)) | set(report.stored)
