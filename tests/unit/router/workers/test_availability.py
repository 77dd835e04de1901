from collections.abc import Callable

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.router.placement.baselines import RoundRobin
from llmserve.router.placement.planner import ActiveRules, Disaggregate, Planner
from llmserve.router.workers.availability import Availability
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import WorkerSpec

MakeSpec = Callable[..., WorkerSpec]


@pytest.fixture
def membership(clock: VirtualClock) -> ClusterMembership:
    return ClusterMembership(clock, expiry_seconds=4.0)


def _availability(membership: ClusterMembership, mode: Disaggregate = Disaggregate.AUTO) -> Availability:
    return Availability(membership, Planner(membership, ActiveRules((), RoundRobin(), mode)))


def test_a_change_of_workers_is_told_once(membership: ClusterMembership, make_spec: MakeSpec) -> None:
    availability = _availability(membership)
    assert not availability.changed()
    membership.register(make_spec("decode-0"))
    assert [availability.changed(), availability.changed()] == [True, False]


def test_who_waited_where_no_worker_is_hears_why(membership: ClusterMembership) -> None:
    lack = _availability(membership).lack("m")
    assert lack is not None
    assert lack.message == "no prefill and no decode worker of model m is registered"
    assert lack.retry_after_seconds == 10.0


@pytest.mark.parametrize("name", ["prefill-0", "decode-0", "aggregated-0"])
def test_a_worker_of_any_role_is_enough(
    membership: ClusterMembership, make_spec: MakeSpec, name: str
) -> None:
    membership.register(make_spec(name))
    assert _availability(membership).lack("m") is None


def test_where_the_manifest_wants_pairs_both_are_needed(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    availability = _availability(membership, Disaggregate.ALWAYS)
    membership.register(make_spec("prefill-0"))
    lack = availability.lack("m")
    assert lack is not None
    assert lack.message == "no decode worker of model m is registered"
    membership.register(make_spec("decode-0"))
    assert availability.lack("m") is None
