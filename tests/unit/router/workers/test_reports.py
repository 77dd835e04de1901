"""What workers say of their adapters."""

from collections.abc import Callable

import pytest

from llmserve.core.adapters import AdapterReport, AdapterReports, AdapterTier
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.request import EngineLoad
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import WorkerSpec

A, B = AdapterDigest("a" * 64), AdapterDigest("b" * 64)
WORKER = WorkerId("decode-0")


@pytest.fixture
def membership(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> ClusterMembership:
    members = ClusterMembership(clock, expiry_seconds=3.0)
    members.register(make_spec("decode-0"))
    return members


def test_a_worker_has_what_it_reported_last(membership: ClusterMembership) -> None:
    one, other = AdapterReport(1, A, tier=AdapterTier.DISK), AdapterReport(2, B, tier=AdapterTier.DEVICE)
    member = membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports((one,)))
    assert (member.reports, member.adapters) == ({1: one}, {A: one})
    assert membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports((other,))) is member
    assert (member.reports, member.adapters) == ({2: other}, {B: other})


def test_a_heartbeat_without_reports_changes_nothing(membership: ClusterMembership) -> None:
    member = membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports((AdapterReport(1, A),)))
    adapters = member.adapters
    membership.heartbeat(WORKER, 1, EngineLoad())
    assert member.adapters is adapters
    membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports())
    assert (member.reports, member.adapters) == ({}, {})


def test_changes_leave_all_else_as_it_was(membership: ClusterMembership) -> None:
    one, gone, moves = AdapterReport(1, A), AdapterReport(2, B), AdapterReport(3)
    member = membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports((one, gone, moves)))
    changes = AdapterReports((AdapterReport(3, B), AdapterReport(4)), changes_only=True, ended=(2, 9))
    membership.heartbeat(WORKER, 1, EngineLoad(), reports=changes)
    assert member.reports == {1: one, 3: AdapterReport(3, B), 4: AdapterReport(4)}
    assert member.reports[1] is one
    assert member.adapters == {A: one, B: AdapterReport(3, B)}


def test_what_it_has_not_fetched_or_cannot_run_is_no_adapter_of_it(membership: ClusterMembership) -> None:
    fetching, wrong = AdapterReport(1), AdapterReport(2, A, error="InvalidRequest", message="rank 64")
    member = membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports((fetching, wrong)))
    assert (member.reports, member.adapters) == ({1: fetching, 2: wrong}, {})


def test_a_new_incarnation_has_reported_nothing(
    membership: ClusterMembership, make_spec: Callable[..., WorkerSpec]
) -> None:
    membership.heartbeat(WORKER, 1, EngineLoad(), reports=AdapterReports((AdapterReport(1, A),)))
    membership.register(make_spec("decode-0", epoch=2))
    (member,) = membership
    assert (member.reports, member.adapters) == ({}, {})
