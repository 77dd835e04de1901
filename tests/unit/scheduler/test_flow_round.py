"""Which request of a flow is asked next in one round of dispatch."""

import pytest

from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.scheduler.flows import FlowRound, TenantFlow
from llmserve.scheduler.request import QueuedRequest, WaitingRequest


def make_flow(*names: str) -> TenantFlow:
    """A name's letters are its adapter, its digits tell requests apart."""
    flow = TenantFlow(TenantId("t"))
    for number, name in enumerate(names):
        adapter = AdapterDigest(name.rstrip("0123456789"))
        request = QueuedRequest(RequestId(name), TenantId("t"), 0.0, 60.0, adapter=adapter)
        flow.add(WaitingRequest(0.0, number, request))
    return flow


def asked(one: FlowRound) -> WaitingRequest:
    waiting = one.next()
    assert waiting is not None
    return waiting


def place(flow: TenantFlow, one: FlowRound) -> str:
    waiting = asked(one)
    flow.remove(waiting)
    one.placed(waiting)
    return waiting.request.request_id


def test_those_without_a_place_are_passed_over() -> None:
    flow = make_flow("a1", "b1", "c1")
    one = FlowRound(flow)
    assert asked(one) is asked(one) is flow[0]
    one.blocked(flow[0])
    assert place(flow, one) == "b1"
    one.blocked(asked(one))
    assert one.next() is None


def test_deferred_ones_are_asked_again_the_most_frequent_adapter_first() -> None:
    flow = make_flow("a1", "b1", "c1", "b2", "c2", "b3", "run1")
    one = FlowRound(flow)
    for _ in range(6):
        one.deferred(asked(one))
    assert [place(flow, one) for _ in range(7)] == ["run1", "b1", "b2", "b3", "c1", "c2", "a1"]
    assert one.next() is None
    assert len(flow) == 0


def test_one_that_is_deferred_and_has_no_place_is_not_asked_a_third_time() -> None:
    flow = make_flow("a1", "b1", "b2")
    one = FlowRound(flow)
    for _ in range(3):
        one.deferred(asked(one))
    one.blocked(asked(one))
    assert place(flow, one) == "b2"
    assert place(flow, one) == "a1"
    assert one.next() is None
    assert [flow[index].request.request_id for index in range(len(flow))] == ["b1"]


def test_a_deferred_one_that_is_placed_moves_those_behind_it_up() -> None:
    flow = make_flow(*(f"a{number}" for number in range(300)))
    one = FlowRound(flow)
    for _ in range(256):
        one.deferred(asked(one))
    assert place(flow, one) == "a0"
    assert asked(one).request.request_id == "a256", "there is room for one more"
    one.deferred(asked(one))
    assert place(flow, one) == "a1"


@pytest.mark.parametrize(("deferred", "blocked"), [(0, 32), (5, 32), (32, 0)])
def test_32_without_a_place_end_the_round(deferred: int, blocked: int) -> None:
    flow = make_flow(*(f"a{number}" for number in range(100)))
    one = FlowRound(flow)
    for _ in range(deferred):
        one.deferred(asked(one))
    for _ in range(blocked):
        one.blocked(asked(one))
    assert (one.next() is None) is (blocked == 32)


def test_a_round_knows_whether_a_request_lacks_a_slot() -> None:
    one = FlowRound(make_flow("a1", "b1", "c1"))
    seen = [one.lacks_slot]
    for lacks_slot in (False, True, False):
        one.blocked(asked(one), lacks_slot=lacks_slot)
        seen.append(one.lacks_slot)
    assert seen == [False, False, True, True]
