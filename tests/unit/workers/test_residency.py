"""What the KV manager is told: a snapshot, then changes, numbered without gaps."""

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import LeaseId
from llmserve.core.lease import LeaseChange, LeaseState
from llmserve.core.request import KvEvents
from llmserve.workers.reporter import Report, Residency


def granted(name: str, seconds: float = 30.0) -> LeaseChange:
    return LeaseChange(LeaseId(name), LeaseState.GRANTED, 3, seconds)


def released(name: str) -> LeaseChange:
    return LeaseChange(LeaseId(name), LeaseState.RELEASED, 3)


def test_a_snapshot_is_the_whole_truth() -> None:
    clock = VirtualClock()
    residency = Residency(clock)
    residency.apply(KvEvents(stored=(b"a", b"b"), leases=(granted("l"), granted("m"))))
    residency.apply(KvEvents(removed=(b"a",), leases=(released("m"),)))
    clock.advance(10.0)
    report = residency.take_snapshot()
    assert report == Report(1, True, stored=(b"b",), leases=(granted("l", 20.0),))
    assert not residency.has_changes


def test_changes_since_the_last_report_merge() -> None:
    residency = Residency(VirtualClock())
    residency.take_snapshot()
    residency.apply(KvEvents(stored=(b"a", b"b"), leases=(granted("l"),)))
    residency.apply(KvEvents(removed=(b"a",), stored=(b"c",), leases=(released("l"),)))
    report = residency.take_delta()
    assert (report.sequence, report.snapshot) == (2, False)
    assert (report.stored, report.removed) == ((b"b", b"c"), (b"a",))
    assert report.leases == (granted("l"), released("l"))
    assert not residency.has_changes


def test_a_block_that_went_and_came_back_is_there() -> None:
    residency = Residency(VirtualClock())
    residency.apply(KvEvents(stored=(b"a",)))
    residency.take_snapshot()
    residency.apply(KvEvents(removed=(b"a",)))
    residency.apply(KvEvents(stored=(b"a",)))
    assert replay({b"a"}, residency.take_delta()) == {b"a"}


def test_clearing_forgets_what_was_pending() -> None:
    residency = Residency(VirtualClock())
    residency.apply(KvEvents(stored=(b"a",)))
    residency.apply(KvEvents(cleared=True, stored=(b"b",)))
    report = residency.take_delta()
    assert (report.cleared, report.stored, report.removed) == (True, (b"b",), ())
    assert residency.device_blocks == 1


def replay(known: set[bytes], report: Report) -> set[bytes]:
    """As the manager does: cleared, removed, stored."""
    kept = set() if report.cleared else known
    return (kept - set(report.removed)) | set(report.stored)
