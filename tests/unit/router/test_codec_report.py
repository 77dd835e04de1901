"""Why a request got its place when it did, and there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.adapters import AdapterTier
from llmserve.core.ids import TenantId, WorkerId
from llmserve.core.kv_params import HandoverMode
from llmserve.router.adapters.awaited import AdapterPrefetch
from llmserve.router.codec import PlacementEncoder
from llmserve.router.events import Effect, RequestPlaced
from llmserve.router.placement.planner import Candidate, CostParts, Disaggregate
from llmserve.router.workers.handover import HandoverChoice, HandoverReason
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits


def _placed(effects: list[Effect]) -> RequestPlaced:
    (placed,) = (effect for effect in effects if isinstance(effect, RequestPlaced))
    return placed


def _sent(placed: RequestPlaced) -> router_pb2.Placed:
    message = router_pb2.Placed()
    PlacementEncoder().placed(placed, message)
    return message


def _report(placed: RequestPlaced) -> router_pb2.PlacementReport:
    return _sent(placed).report


def test_one_that_never_waited(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("aggregated-0")
    report = _report(_placed(cluster.admit(cluster.open(), "a")))
    assert (report.requests_ahead, dict(report.used_up_seconds)) == (0, {})
    assert (report.tenant_weight, report.tenant_share) == (1.0, 1.0)


def test_what_was_used_up_while_it_waited(make_cluster: Callable[..., Any]) -> None:
    policy = Policy(limits=ClusterLimits(max_requests_in_flight=1), weights={TenantId("red"): 3.0})
    cluster = make_cluster("aggregated-0", policy=policy)
    session = cluster.open()
    cluster.admit(session, "runs")
    cluster.admit(session, "first", tenant="red")
    cluster.clock.advance(1.0)
    cluster.admit(session, "second", tenant="blue")
    cluster.clock.advance(2.0)
    placed = _placed(cluster.done(session, "runs"))
    report = _report(placed)
    assert (placed.request_id, placed.queue_seconds) == ("first", 3.0)
    assert (report.requests_ahead, dict(report.used_up_seconds)) == (0, {"requests in flight": 3.0})
    assert (report.tenant_weight, report.tenant_share) == (3.0, 0.75)
    second = _report(_placed(cluster.done(session, "first")))
    assert (second.requests_ahead, dict(second.used_up_seconds)) == (1, {"requests in flight": 2.0})


def test_seats_of_workers(make_cluster: Callable[..., Any]) -> None:
    policy = Policy(limits=ClusterLimits(max_requests_in_flight=9))
    cluster = make_cluster("aggregated-0", slots=1, policy=policy)
    session = cluster.open()
    cluster.admit(session, "runs")
    cluster.admit(session, "waits")
    cluster.clock.advance(2.0)
    report = _report(_placed(cluster.done(session, "runs")))
    assert dict(report.used_up_seconds) == {"free seats of workers": 2.0}


def test_the_tenants_own_budget(make_cluster: Callable[..., Any]) -> None:
    own = TenantLimits(TenantLimit(max_requests_in_flight=1), {})
    cluster = make_cluster("aggregated-0", slots=8, policy=Policy(limits=ClusterLimits(tenants=own)))
    session = cluster.open()
    cluster.admit(session, "runs", tenant="red")
    cluster.admit(session, "waits", tenant="red")
    cluster.clock.advance(2.0)
    report = _report(_placed(cluster.done(session, "runs")))
    assert dict(report.used_up_seconds) == {"the tenant's requests in flight": pytest.approx(2.0)}


def test_candidates_have_their_predicted_parts(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("aggregated-0")
    placed = _placed(cluster.admit(cluster.open(), "a"))
    candidate = Candidate(WorkerId("prefill-0"), WorkerId("decode-0"), CostParts(queue=0.5, compute=0.25))
    plan = replace(placed.plan, candidates=(candidate,))
    (one,) = _report(replace(placed, plan=plan)).candidates
    assert (one.prefill, one.decode) == ("prefill-0", "decode-0")
    assert dict(one.seconds) == {"queue": 0.5, "compute": 0.25}


def test_what_was_expected_to_be_cached(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("aggregated-0")
    placed = _placed(cluster.admit(cluster.open(), "a"))
    assert _report(replace(placed, predicted_cached_tokens=48)).predicted_cached_tokens == 48


def test_which_workers_brought_its_adapter_near_while_it_waited(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("aggregated-0")
    placed = _placed(cluster.admit(cluster.open(), "a"))
    assert not _report(placed).prefetches
    done = AdapterPrefetch(WorkerId("aggregated-0"), AdapterTier.DISK, 1.0, 0.0)
    under_way = AdapterPrefetch(WorkerId("aggregated-1"), AdapterTier.SOURCE, 1.0)
    told = _report(replace(placed, prefetches=(done, under_way))).prefetches
    assert [(one.worker_id, one.tier, one.HasField("seconds"), one.seconds) for one in told] == [
        ("aggregated-0", router_pb2.ADAPTER_TIER_DISK, True, 0.0),
        ("aggregated-1", router_pb2.ADAPTER_TIER_SOURCE, False, 0.0),
    ]


def test_why_one_worker_does_it_all(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("prefill-0", disaggregate=Disaggregate.AUTO)
    report = _report(_placed(cluster.admit(cluster.open(), "a")))
    assert report.note == "no decode worker can be used"


def test_what_others_waited_for_before_is_not_told(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("aggregated-0", policy=Policy(limits=ClusterLimits(max_requests_in_flight=1)))
    session = cluster.open()
    cluster.admit(session, "runs")
    cluster.admit(session, "gives up")
    cluster.done(session, "gives up")
    cluster.done(session, "runs")
    cluster.clock.advance(2.0)
    report = _report(_placed(cluster.admit(session, "next")))
    assert dict(report.used_up_seconds) == {}


def test_how_its_kv_comes_to_decode_and_why(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    placed = _placed(cluster.admit(cluster.open(), "a"))
    choice = HandoverChoice(HandoverMode.PUSH, HandoverReason.CHEAPER, 1.5, 1.25)
    pushed = replace(placed, plan=replace(placed.plan, handover=choice))
    report = _report(pushed).handover
    assert (report.push, report.reason) == (True, "it takes less time")
    assert (report.pull_seconds, report.push_seconds) == (1.5, 1.25)
    assert _sent(pushed).placement.push
    pulled = _sent(placed)
    assert (pulled.placement.push, pulled.report.handover.push) == (False, False)
    alone = replace(placed, plan=replace(placed.plan, handover=None))
    assert not _sent(alone).placement.push
    assert not _report(alone).HasField("handover")
