from collections.abc import Callable

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import NotFound
from llmserve.core.ids import WorkerId
from llmserve.core.request import EngineLoad, WorkerRole
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import DrainOrder, WorkerSpec, WorkerState

DECODE = WorkerId("decode-0")
DRAIN, STAY = DrainOrder(True, 30.0), DrainOrder(False)


@pytest.fixture
def membership(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> ClusterMembership:
    made = ClusterMembership(clock, expiry_seconds=4.0)
    made.register(make_spec("decode-0"))
    made.register(make_spec("decode-1"))
    return made


def used(membership: ClusterMembership) -> list[str]:
    return [m.spec.worker_id for m in membership.available("m", WorkerRole.DECODE)]


def beat(membership: ClusterMembership, *, draining: bool) -> None:
    membership.heartbeat(DECODE, 1, EngineLoad(), draining=draining)


def test_a_worker_that_drains_gets_nothing_at_once_and_stays_registered(
    membership: ClusterMembership,
) -> None:
    assert used(membership) == ["decode-0", "decode-1"]
    member = membership.order(DECODE, DRAIN)
    assert used(membership) == ["decode-1"]
    assert (member.state, member.registered) == (WorkerState.DRAINING, True)


def test_the_order_is_repeated_until_the_worker_obeys(membership: ClusterMembership) -> None:
    membership.order(DECODE, DRAIN)
    beat(membership, draining=False)
    assert membership.order_of(DECODE) == DRAIN
    beat(membership, draining=True)
    assert membership.order_of(DECODE) is None
    assert used(membership) == ["decode-1"]


def test_it_is_used_again_when_it_says_that_it_stays(membership: ClusterMembership) -> None:
    membership.order(DECODE, DRAIN)
    beat(membership, draining=True)
    membership.order(DECODE, STAY)
    assert used(membership) == ["decode-1"], "it may be about to stop"
    beat(membership, draining=True)
    assert membership.order_of(DECODE) == STAY
    beat(membership, draining=False)
    assert used(membership) == ["decode-0", "decode-1"]


def test_a_router_that_restarted_learns_it_from_the_worker(membership: ClusterMembership) -> None:
    beat(membership, draining=True)
    assert used(membership) == ["decode-1"]


def test_a_failure_does_not_end_a_drain(membership: ClusterMembership) -> None:
    membership.order(DECODE, DRAIN)
    membership.suspect(DECODE, 1, "broken")
    beat(membership, draining=True)
    assert used(membership) == ["decode-1"]


def test_its_next_incarnation_is_used(
    membership: ClusterMembership, make_spec: Callable[..., WorkerSpec]
) -> None:
    membership.order(DECODE, DRAIN)
    beat(membership, draining=True)
    membership.register(make_spec("decode-0", epoch=2))
    assert sorted(used(membership)) == ["decode-0", "decode-1"]


def test_an_unknown_worker_is_named_with_those_there_are(membership: ClusterMembership) -> None:
    with pytest.raises(NotFound, match="decode-9 is not registered: decode-0, decode-1 are"):
        membership.order(WorkerId("decode-9"), DRAIN)
