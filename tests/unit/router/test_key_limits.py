"""The limits of a key hold over all apiservers, and over a request's whole stay."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.errors import InvalidRequest, Overloaded
from llmserve.core.ids import RequestId, TenantId, WorkerId
from llmserve.core.request import Outcome
from llmserve.router.codec import decode_admit, decode_held
from llmserve.router.events import Effect, HeldRequest, Incarnation, RequestPlaced, RequestRefused
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits
from llmserve.scheduler.scheduler import Policy

MakeCluster = Callable[..., Any]
TWO_AT_ONCE = KeyLimits("k", max_requests_in_flight=2)
ONE_A_SECOND = KeyLimits("k", requests_per_second=1.0)


def refusal(effects: list[Effect]) -> Overloaded:
    (refused,) = (effect for effect in effects if isinstance(effect, RequestRefused))
    assert refused.outcome is Outcome.REJECTED
    assert isinstance(refused.error, Overloaded)
    return refused.error


def is_placed(effects: list[Effect]) -> bool:
    return any(isinstance(effect, RequestPlaced) for effect in effects)


def test_a_key_has_its_limits_once_however_many_apiservers_it_asks(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=5)
    one, two = cluster.open("api-1"), cluster.open("api-2")
    assert is_placed(cluster.admit(one, "a", limits=TWO_AT_ONCE))
    assert is_placed(cluster.admit(two, "b", limits=TWO_AT_ONCE))
    for session in (one, two):
        assert "may have 2" in refusal(cluster.admit(session, "c", limits=TWO_AT_ONCE)).message
    assert is_placed(cluster.admit(one, "d"))  # another key of the tenant
    cluster.done(two, "b")
    assert is_placed(cluster.admit(one, "c", limits=TWO_AT_ONCE))


def test_what_waits_counts_and_is_given_back_however_it_ends(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1)
    session = cluster.open()
    cluster.admit(session, "a")
    for name in ("b", "c"):
        assert cluster.admit(session, name, timeout=1.0, limits=TWO_AT_ONCE) == []
    refusal(cluster.admit(session, "d", limits=TWO_AT_ONCE))
    cluster.done(session, "b", Outcome.CANCELLED)
    assert cluster.admit(session, "d", limits=TWO_AT_ONCE) == []
    cluster.after(1.0)  # "c" waits no longer
    assert cluster.admit(session, "e", limits=TWO_AT_ONCE) == []
    cluster.close(session)
    assert repr(cluster.controller._scheduler.keys) == "<KeyBudgets {}>"


def test_what_the_queue_refuses_costs_the_key_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1, policy=Policy(max_queued_requests=0))
    session = cluster.open()
    cluster.admit(session, "a")
    for _ in range(3):
        assert "the queue is full" in refusal(cluster.admit(session, "b", limits=ONE_A_SECOND)).message


def test_rates_say_when_to_come_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=9)
    session = cluster.open()
    for name in "ab":
        assert is_placed(cluster.admit(session, name, limits=ONE_A_SECOND))
    assert refusal(cluster.admit(session, "c", limits=ONE_A_SECOND)).retry_after_seconds == pytest.approx(1.0)
    cluster.after(1.0)
    assert is_placed(cluster.admit(session, "c", limits=ONE_A_SECOND))


def test_tokens_are_counted_while_they_come(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=9)
    session, limits = cluster.open(), KeyLimits("k", tokens_per_second=10.0)  # prompts have 10
    cluster.admit(session, "a", limits=limits)
    cluster.controller.requests.progress(session, RequestId("a"), 30)
    assert refusal(cluster.admit(session, "b", limits=limits)).retry_after_seconds == pytest.approx(3.0)
    cluster.after(3.0)
    cluster.done(session, "a")  # 5 tokens, which were counted
    assert is_placed(cluster.admit(session, "b", limits=limits))
    cluster.done(session, "b")
    assert refusal(cluster.admit(session, "c", limits=limits)).retry_after_seconds == pytest.approx(1.5)


def test_a_request_whose_worker_was_lost_is_not_charged_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", "aggregated-1", slots=5)
    session = cluster.open()
    for name in "ab":
        cluster.admit(session, name, limits=ONE_A_SECOND)
    assert is_placed(cluster.admit(session, "a", without="aggregated-0", limits=ONE_A_SECOND, again=True))
    cluster.done(session, "b")
    assert is_placed(cluster.admit(session, "b", limits=ONE_A_SECOND, again=True))
    cluster.after(1.0)
    assert is_placed(cluster.admit(session, "c", limits=ONE_A_SECOND))


def test_the_next_leader_counts_what_runs_and_what_was_used(make_cluster: MakeCluster) -> None:
    limits = replace(ONE_A_SECOND, requests_per_second=0.5, max_requests_in_flight=3)
    old, new = make_cluster("aggregated-0", slots=5), make_cluster("aggregated-0", slots=5)
    session = old.open()
    old.admit(session, "a", limits=limits)
    worker = Incarnation(WorkerId("aggregated-0"), 1)
    held = (HeldRequest(RequestId("a"), TenantId("t"), None, worker, 10, model="m", limits=limits),)
    new.controller.take_over(old.controller.snapshot(), settle_seconds=0.0)
    session = new.open(held=held)
    assert refusal(new.admit(session, "b", limits=limits)).retry_after_seconds == pytest.approx(1.0)
    new.after(1.0)
    assert is_placed(new.admit(session, "b", limits=limits))
    new.after(9.0)
    assert "has 2 requests in flight" in refusal(new.admit(session, "c", limits=limits, choices=2)).message


def test_the_next_leader_does_not_count_tokens_again(make_cluster: MakeCluster) -> None:
    """A long answer that ran on would hold up its key for as long as it has taken."""
    limits = KeyLimits("k", tokens_per_second=100.0)
    old, new = make_cluster("aggregated-0", slots=5), make_cluster("aggregated-0", slots=5)
    session = old.open()
    old.admit(session, "a", limits=limits)
    old.controller.requests.progress(session, RequestId("a"), 5000)
    old.after(60.0)
    worker = Incarnation(WorkerId("aggregated-0"), 1)
    held = HeldRequest(
        RequestId("a"), TenantId("t"), None, worker, 10, model="m", limits=limits, output_tokens=5000
    )
    new.controller.take_over(old.controller.snapshot(), settle_seconds=0.0)
    session = new.open(held=(held,))
    new.controller.requests.progress(session, RequestId("a"), 5050)
    assert is_placed(new.admit(session, "b", limits=limits))
    new.controller.requests.progress(session, RequestId("a"), 6000)
    assert refusal(new.admit(session, "c", limits=limits)).retry_after_seconds == pytest.approx(9.1, abs=0.2)


def test_a_session_that_broke_does_not_charge_again(make_cluster: MakeCluster) -> None:
    limits = KeyLimits("k", requests_per_second=0.2, tokens_per_second=1000.0)
    cluster = make_cluster("aggregated-0", slots=5)
    session = cluster.open()
    cluster.admit(session, "a", limits=limits)
    cluster.controller.requests.progress(session, RequestId("a"), 5000)
    for _ in range(3):
        cluster.heartbeat("aggregated-0")
        cluster.after(2.0)
    cluster.close(session)
    worker = Incarnation(WorkerId("aggregated-0"), 1)
    held = HeldRequest(
        RequestId("a"), TenantId("t"), None, worker, 10, model="m", limits=limits, output_tokens=5000
    )
    session = cluster.open(held=(held,))
    assert is_placed(cluster.admit(session, "b", limits=limits))


def test_limits_cross_the_wire() -> None:
    limits = router_pb2.KeyLimits(key="k", tokens_per_second=2.5, max_requests_in_flight=4)
    placement = router_pb2.Placement(decode=WorkerInfo(worker_id="w"))
    expected = KeyLimits("k", None, 2.5, 4)
    admit = decode_admit(router_pb2.Admit(request_id="a", model="m", key_limits=limits, again=True))
    assert (admit.limits, admit.again) == (expected, True)
    held = router_pb2.HeldPlacement(request_id="a", placement=placement, key_limits=limits, output_tokens=7)
    assert (decode_held(held).limits, decode_held(held).output_tokens) == (expected, 7)
    without = decode_admit(router_pb2.Admit(request_id="a", model="m"))
    assert (without.limits, without.again) == (NO_LIMITS, False)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(wrong: float) -> None:
    limits = router_pb2.KeyLimits(key="k", requests_per_second=wrong)
    with pytest.raises(InvalidRequest, match="requests_per_second of a key must be a number over 0"):
        decode_admit(router_pb2.Admit(request_id="a", model="m", key_limits=limits))
