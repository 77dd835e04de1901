from collections.abc import Callable

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.router.baselines import RoundRobin
from llmserve.router.membership import Membership
from llmserve.router.plan import Disaggregate, Planner, Rules
from llmserve.router.supply import Supply
from llmserve.router.worker import WorkerSpec

MakeSpec = Callable[..., WorkerSpec]


@pytest.fixture
def membership(clock: VirtualClock) -> Membership:
    return Membership(clock, expiry_seconds=4.0)


def _supply(membership: Membership, mode: Disaggregate = Disaggregate.AUTO) -> Supply:
    return Supply(membership, Planner(membership, Rules((), RoundRobin(), mode)))


def test_a_change_of_workers_is_told_once(membership: Membership, make_spec: MakeSpec) -> None:
    supply = _supply(membership)
    assert not supply.changed()
    membership.register(make_spec("decode-0"))
    assert [supply.changed(), supply.changed()] == [True, False]


def test_who_waited_where_no_worker_is_hears_why(membership: Membership) -> None:
    lack = _supply(membership).lack("m")
    assert lack is not None
    assert lack.message == "no prefill and no decode worker of model m is registered"
    assert lack.retry_after_seconds == 10.0


@pytest.mark.parametrize("name", ["prefill-0", "decode-0", "aggregated-0"])
def test_a_worker_of_any_role_is_enough(membership: Membership, make_spec: MakeSpec, name: str) -> None:
    membership.register(make_spec(name))
    assert _supply(membership).lack("m") is None


def test_where_the_manifest_wants_pairs_both_are_needed(membership: Membership, make_spec: MakeSpec) -> None:
    supply = _supply(membership, Disaggregate.ALWAYS)
    membership.register(make_spec("prefill-0"))
    lack = supply.lack("m")
    assert lack is not None
    assert lack.message == "no decode worker of model m is registered"
    membership.register(make_spec("decode-0"))
    assert supply.lack("m") is None
