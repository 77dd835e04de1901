from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.errors import InvalidRequest, NoWorkerAvailable, QueueFull, QueueTimeout
from llmserve.core.ids import AdapterDigest, RequestId, TenantId, WorkerId
from llmserve.core.request import Outcome
from llmserve.router.events import (
    Admit,
    Effect,
    Exit,
    HeldRequest,
    Incarnation,
    RequestEnded,
    RequestPlaced,
    RequestRefused,
)
from llmserve.router.placement.planner import Disaggregate, PlacementRequest
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.speed import SlowLimits
from llmserve.router.workers.worker import DrainOrder
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits

MakeCluster = Callable[..., Any]


def _placed(effects: list[Effect]) -> list[str]:
    return [effect.request_id for effect in effects if isinstance(effect, RequestPlaced)]


def _refused(effects: list[Effect]) -> RequestRefused:
    (refused,) = [effect for effect in effects if isinstance(effect, RequestRefused)]
    return refused


def _held(name: str, *, prefill: bool = False, epoch: int = 1) -> HeldRequest:
    first = Incarnation(WorkerId("prefill-0"), epoch) if prefill else None
    return HeldRequest(
        RequestId(name), TenantId("t"), first, Incarnation(WorkerId("decode-0"), epoch), model="m"
    )


def test_what_a_message_does_not_say_is_zero() -> None:
    admit, held = Admit(RequestId("a"), TenantId("t"), PlacementRequest("m")), _held("a")
    assert (admit.priority, admit.timeout_seconds) == (0, 0.0)
    assert (held.prompt_tokens, held.max_output_tokens) == (0, 0)


def test_places_until_seats_are_taken_then_in_turn(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", slots=2)
    one, two = cluster.open("one"), cluster.open("two")
    (placed,) = cluster.admit(one, "a")
    assert placed.plan.prefill.spec.worker_id == "prefill-0"
    assert placed.plan.decode.spec.worker_id == "decode-0"
    assert placed.queue_seconds == 0.0
    assert _placed(cluster.admit(two, "b")) == ["b"]
    assert cluster.admit(two, "c") == []
    assert cluster.admit(one, "d") == []
    cluster.clock.advance(2.5)
    ended, placed = cluster.done(one, "a")
    assert ended == RequestEnded(one, RequestId("a"), Exit.COMPLETED)
    assert (placed.request_id, placed.session, placed.queue_seconds) == ("c", two, 2.5)


def test_each_choice_has_a_seat_where_all_decode(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", slots=4)
    cluster.register("decode-0", slots=4)
    session = cluster.open()
    assert _placed(cluster.admit(session, "a", choices=3)) == ["a"]
    assert (cluster.placed_on("prefill-0"), cluster.placed_on("decode-0")) == (1, 3)
    assert cluster.admit(session, "b", choices=2) == []
    cluster.first_token(session, "a")
    assert (cluster.placed_on("prefill-0"), cluster.placed_on("decode-0")) == (0, 3)
    assert _placed(cluster.done(session, "a")) == ["b"]
    assert cluster.placed_on("decode-0") == 2


def test_more_choices_than_an_engine_runs_are_the_client_s_mistake(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", "decode-1", slots=4)
    refused = _refused(cluster.admit(cluster.open(), "a", choices=1200))
    assert (refused.outcome, type(refused.error)) == (Outcome.REJECTED, InvalidRequest)
    assert refused.error.message == (
        "n: the 1200 choices of a request run side by side, and engine.max_decode_concurrency allows 4"
    )


def test_a_router_that_takes_over_counts_the_choices_that_run(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", slots=4)
    held = HeldRequest(
        RequestId("a"), TenantId("t"), None, Incarnation(WorkerId("decode-0"), 1), choices=3, model="m"
    )
    session = cluster.open("one", (held,))
    assert cluster.placed_on("decode-0") == 3
    assert cluster.admit(session, "b", choices=2) == []
    assert _placed(cluster.done(session, "a")) == ["b"]


def test_a_place_takes_kv_room_for_the_prompt_and_the_expected_answer(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    session = cluster.open()
    (placed,) = cluster.admit(session, "a")
    assert placed.plan.decode.slots.kv_tokens == 10 + 256
    cluster.done(session, "a")
    assert placed.plan.decode.slots.kv_tokens == 0


def test_a_request_that_has_no_place_holds_nobody_up(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0")
    session = cluster.open()
    assert cluster.admit(session, "of another model", model="absent") == []
    assert _placed(cluster.admit(session, "a")) == ["a"]


def test_what_is_given_back_early_has_generated_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0")
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.close(session)
    (tenant,) = cluster.controller.scheduler_stats().tenants
    assert tenant.served_tokens == 10, "its prompt"


def test_the_first_token_frees_the_prefill_worker(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", slots=1)
    cluster.register("decode-0", slots=5)
    session = cluster.open()
    cluster.admit(session, "a")
    assert cluster.admit(session, "b") == []
    assert _placed(cluster.first_token(session, "a")) == ["b"]
    assert cluster.first_token(session, "a") == []  # once
    assert cluster.placed_on("prefill-0") == 1
    assert cluster.placed_on("decode-0") == 2
    cluster.done(session, "a")
    cluster.done(session, "b")
    assert (cluster.placed_on("prefill-0"), cluster.placed_on("decode-0")) == (0, 0)


def test_a_limit_of_the_manifest_holds_below_capacity(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        "aggregated-0", slots=9, policy=Policy(limits=ClusterLimits(max_requests_in_flight=1))
    )
    session = cluster.open()
    assert _placed(cluster.admit(session, "a")) == ["a"]
    assert cluster.admit(session, "b") == []
    assert _placed(cluster.done(session, "a")) == ["b"]


def test_places_are_wanted_while_requests_wait_for_them(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1)
    session = cluster.open()
    cluster.admit(session, "a")
    assert not cluster.controller.wants_places
    cluster.admit(session, "b")
    assert cluster.controller.wants_places
    cluster.done(session, "a")
    assert not cluster.controller.wants_places


def test_places_are_always_wanted_where_none_may_wait_for_them(make_cluster: MakeCluster) -> None:
    assert make_cluster("aggregated-0", policy=Policy(max_queued_requests=0)).controller.wants_places


def test_a_full_queue_refuses(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1, policy=Policy(max_queued_requests=1))
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.admit(session, "b")
    refused = _refused(cluster.admit(session, "c"))
    assert refused.outcome is Outcome.REJECTED
    assert isinstance(refused.error, QueueFull)
    assert refused.error.retry_after_seconds is not None
    assert cluster.done(session, "c") == []  # it holds nothing


def test_waiting_has_an_end(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1, policy=Policy(queue_timeout_seconds=60.0))
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.admit(session, "usual")
    cluster.admit(session, "hasty", timeout=2.0)
    assert cluster.controller.next_wake() == 1002.0
    refused = _refused(cluster.after(2.0))
    assert (refused.request_id, refused.outcome) == ("hasty", Outcome.EVICTED)
    assert isinstance(refused.error, QueueTimeout)
    cluster.heartbeat("aggregated-0")
    for _ in range(29):
        cluster.after(2.0)
        cluster.heartbeat("aggregated-0")
    assert cluster.controller.waiting_requests == 0


def test_done_withdraws_what_still_waits(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1)
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.admit(session, "b")
    assert cluster.done(session, "b", Outcome.CANCELLED) == [
        RequestEnded(session, RequestId("b"), Exit.CANCELLED)
    ]
    assert cluster.controller.waiting_requests == 0
    assert _placed(cluster.done(session, "a")) == []


def test_a_broken_session_gives_everything_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", slots=1)
    lost, other = cluster.open("lost"), cluster.open("other")
    cluster.admit(lost, "runs")
    cluster.admit(lost, "waits")
    cluster.admit(other, "next")
    effects = cluster.close(lost)
    assert [e for e in effects if isinstance(e, RequestEnded)] == [
        RequestEnded(lost, RequestId("runs"), Exit.GIVEN_BACK),
        RequestEnded(lost, RequestId("waits"), Exit.GIVEN_BACK),
    ]
    assert _placed(effects) == ["next"]
    assert cluster.close(lost) == []
    assert cluster.controller.apiservers == 1


def test_a_returning_apiserver_replaces_its_older_session(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", slots=2)
    old = cluster.open("api")
    cluster.admit(old, "a")
    new = cluster.open("api", held=(_held("a"),))
    assert cluster.controller.running_requests == 1
    assert cluster.placed_on("prefill-0") == 0  # past its first token
    cluster.close(old)  # noticed late
    assert cluster.controller.apiservers == 1
    assert cluster.done(old, "a") == []
    assert cluster.done(new, "a") == [RequestEnded(new, RequestId("a"), Exit.COMPLETED)]


def test_a_restarted_router_counts_what_apiservers_hold(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    session = cluster.open("api", held=(_held("a", prefill=True), _held("b"), _held("old", epoch=0)))
    assert cluster.controller.running_requests == 3
    cluster.register("prefill-0", "decode-0", slots=2)  # workers find the new router a little later
    assert (cluster.placed_on("prefill-0"), cluster.placed_on("decode-0")) == (1, 2)
    assert cluster.admit(session, "c") == []
    cluster.done(session, "old")
    assert _placed(cluster.done(session, "b")) == ["c"]


def test_an_admit_again_replaces_the_place(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", "aggregated-1", slots=1)
    session = cluster.open()
    (first,) = cluster.admit(session, "a")
    lost = first.plan.decode.spec.worker_id
    ended, placed = cluster.admit(session, "a", without=lost)
    assert ended == RequestEnded(session, RequestId("a"), Exit.REPLACED)
    assert placed.plan.decode.spec.worker_id != lost
    assert cluster.controller.running_requests == 1


def test_an_id_of_another_apiserver_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0")
    one, two = cluster.open("one"), cluster.open("two")
    cluster.admit(one, "a")
    refused = _refused(cluster.admit(two, "a"))
    assert isinstance(refused.error, InvalidRequest)
    assert refused.session is two
    assert cluster.controller.running_requests == 1


@pytest.mark.parametrize(("timeout", "evicted_after"), [(0.0, 60.0), (3.0, 3.0)])
def test_without_any_worker_a_request_waits_as_long_as_it_may(
    make_cluster: MakeCluster, timeout: float, evicted_after: float
) -> None:
    cluster = make_cluster()
    session = cluster.open()
    cluster.admit(session, "a", timeout=timeout)
    assert cluster.after(evicted_after - 0.1) == []
    refused = _refused(cluster.after(0.1))
    assert refused.outcome is Outcome.EVICTED
    assert isinstance(refused.error, NoWorkerAvailable)
    assert "worker of model m is registered" in refused.error.message


def test_who_waits_while_the_last_worker_is_started_again_is_served(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1, expiry_seconds=4.0)
    session = cluster.open()
    cluster.admit(session, "runs")
    cluster.admit(session, "waits")
    assert cluster.after(4.0) == []  # lost now
    assert _placed(cluster.done(session, "runs", Outcome.FAILED)) == []
    assert cluster.after(40.0) == []
    assert _placed(cluster.register("aggregated-0", epoch=2, slots=1)) == ["waits"]


@pytest.mark.parametrize("lost", ["prefill-0", "decode-0"])
def test_the_other_role_serves_alone_as_soon_as_one_fails(make_cluster: MakeCluster, lost: str) -> None:
    other = "decode-0" if lost == "prefill-0" else "prefill-0"
    cluster = make_cluster("prefill-0", "decode-0", disaggregate=Disaggregate.AUTO)
    session = cluster.open()
    cluster.fail(lost)
    (placed,) = cluster.admit(session, "a")
    assert isinstance(placed, RequestPlaced)
    assert (placed.plan.prefill, placed.plan.decode.spec.worker_id) == (None, other)
    assert placed.plan.note == f"no {lost[:-2]} worker can be used ({lost}: broken)"
    cluster.heartbeat(lost)
    (placed,) = cluster.admit(session, "b")
    assert isinstance(placed, RequestPlaced)
    assert placed.plan.note == ""


def test_what_waits_for_a_worker_that_fails_goes_to_the_other_role_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", slots=1, disaggregate=Disaggregate.AUTO, routing="least_loaded")
    cluster.register("decode-0", slots=4)
    session = cluster.open()
    assert _placed(cluster.admit(session, "a")) == ["a"]
    assert _placed(cluster.admit(session, "b")) == [], "the prefill worker is full"
    assert _placed(cluster.fail("prefill-0")) == ["b"]


def test_a_suspect_is_not_used_and_its_heartbeat_dispatches(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0")
    session = cluster.open()
    cluster.fail("aggregated-0")
    assert cluster.admit(session, "a") == []
    assert _placed(cluster.heartbeat("aggregated-0")) == ["a"]


def test_a_worker_that_leaves_gets_nothing_more(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0")
    session = cluster.open()
    assert cluster.controller.deregister(WorkerId("aggregated-0"), 1) == []
    assert cluster.admit(session, "a") == []


def test_a_drain_says_how_many_others_are_left(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", "decode-1", "decode-2")
    member, left = cluster.controller.drain(WorkerId("decode-1"), DrainOrder(drain=True))
    assert (member.spec.worker_id, left) == ("decode-1", 2)
    member, left = cluster.controller.drain(WorkerId("decode-2"), DrainOrder(drain=False))
    assert (member.spec.worker_id, left) == ("decode-2", 1), "it takes requests itself, too"


@pytest.mark.parametrize("stalled", [False, True])
def test_a_worker_is_avoided_after_a_stall_though_it_is_heard(
    make_cluster: MakeCluster, stalled: bool
) -> None:
    cluster = make_cluster("aggregated-0", "aggregated-1")
    cluster.controller.worker_failed(WorkerId("aggregated-0"), 1, "broken", stalled=stalled)
    cluster.heartbeat("aggregated-0")
    assert cluster.controller.speeds.stalled_names() == ({"aggregated-0"} if stalled else set())


def test_a_newer_incarnation_takes_work_though_the_older_ones_requests_linger(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster("aggregated-0", slots=1)
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.register("aggregated-0", epoch=2, slots=2)
    assert cluster.placed_on("aggregated-0") == 0
    assert _placed(cluster.admit(session, "b")) == ["b"]
    cluster.done(session, "a")
    assert cluster.placed_on("aggregated-0") == 1


def test_a_request_that_no_budget_can_hold_is_refused_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", policy=Policy(limits=ClusterLimits(hbm_bytes=256.0 * 200)))
    refused = _refused(cluster.admit(cluster.open(), "a"))  # 10 tokens and 256 expected, of 256 bytes each
    assert refused.outcome is Outcome.REJECTED
    assert isinstance(refused.error, InvalidRequest)
    assert "needs 266, and budgets.hbm_gb allows 200" in refused.error.message


def test_a_long_answer_takes_more_of_the_budget_as_it_grows(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", policy=Policy(limits=ClusterLimits(max_tokens_in_flight=600)))
    session = cluster.open()
    assert _placed(cluster.admit(session, "a")) == ["a"]
    cluster.controller.requests.progress(session, RequestId("a"), 500)
    assert _placed(cluster.admit(session, "b")) == []
    assert _placed(cluster.done(session, "a")) == ["b"]


def test_a_large_request_holds_up_another_model_only_while_it_has_a_place(
    make_cluster: MakeCluster, make_spec: Callable[..., Any]
) -> None:
    cluster = make_cluster("aggregated-0", policy=Policy(limits=ClusterLimits(max_tokens_in_flight=1100)))
    session = cluster.open()
    assert _placed(cluster.admit(session, "a")) == ["a"]  # 10 tokens and 256 expected
    assert _placed(cluster.admit(session, "large", model="other", choices=4)) == []
    assert _placed(cluster.admit(session, "b")) == ["b"], "the other model has no worker"
    cluster.controller.register(make_spec("aggregated-1", model="other", slots=4))
    assert _placed(cluster.done(session, "a")) == []
    assert _placed(cluster.admit(session, "c")) == []
    assert _placed(cluster.done(session, "b")) == ["large", "c"]


def test_what_an_apiserver_holds_counts_in_every_budget(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        "prefill-0", "decode-0", policy=Policy(limits=ClusterLimits(max_tokens_in_flight=600))
    )
    held = replace(_held("x"), prompt_tokens=400)
    session = cluster.open(held=(held,))
    assert _placed(cluster.admit(session, "a")) == []
    assert _placed(cluster.done(session, "x")) == ["a"]


def test_time_alone_lets_the_next_one_through(make_cluster: MakeCluster) -> None:
    tenants = TenantLimits(TenantLimit(requests_per_second=0.5))
    cluster = make_cluster(
        "aggregated-0", policy=Policy(limits=ClusterLimits(tenants=tenants)), expiry_seconds=99.0
    )
    session = cluster.open()
    assert _placed(cluster.admit(session, "a")) == ["a"]
    assert cluster.admit(session, "b") == []
    assert cluster.controller.next_wake() == pytest.approx(cluster.clock.now() + 1.0)
    assert _placed(cluster.after(1.0)) == ["b"]


def test_the_flood_makes_room_for_another_tenant(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1, policy=Policy(max_queued_requests=2))
    session = cluster.open()
    for name in "abc":
        cluster.admit(session, name)
    refused = _refused(cluster.admit(session, "other", tenant="quiet"))
    assert (refused.request_id, refused.outcome) == ("c", Outcome.EVICTED)
    assert isinstance(refused.error, QueueFull)


def test_parameters_change_while_requests_wait(make_cluster: MakeCluster) -> None:
    one = Policy(limits=ClusterLimits(max_requests_in_flight=1))
    cluster = make_cluster("aggregated-0", policy=one)
    session = cluster.open()
    for name in "abc":
        cluster.admit(session, name)
    settings = RouterSettings(Policy(limits=ClusterLimits(max_requests_in_flight=2)))
    assert _placed(cluster.controller.reconfigure(settings)) == ["b"]
    tiny = RouterSettings(Policy(limits=ClusterLimits(max_tokens_in_flight=20)))
    refused = _refused(cluster.controller.reconfigure(tiny))
    assert refused.request_id == "c"
    cluster.controller.check_integrity()


def test_placement_changes_while_the_router_runs(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    session = cluster.open()
    never = RouterSettings(disaggregate=Disaggregate.NEVER)
    assert cluster.controller.reconfigure(never) == []
    (alone,) = cluster.admit(session, "a")
    assert isinstance(alone, RequestPlaced)
    assert alone.plan.prefill is None
    always = RouterSettings(disaggregate=Disaggregate.ALWAYS, routing="round_robin", prefetch_on_prefix=True)
    cluster.controller.reconfigure(always)
    (pair,) = cluster.admit(session, "b")
    assert isinstance(pair, RequestPlaced)
    assert pair.plan.prefill is not None
    assert cluster.controller.prefixes.prefetches


def test_a_change_of_something_else_loses_no_turn(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        "aggregated-0", "aggregated-1", disaggregate=Disaggregate.NEVER, routing="round_robin"
    )
    session = cluster.open()
    order = []
    for number in range(4):
        settings = RouterSettings(routing="round_robin", engine_queue_seconds=1.0 + number)
        cluster.controller.reconfigure(settings)
        (placed,) = cluster.admit(session, f"r{number}")
        assert isinstance(placed, RequestPlaced)
        order.append(placed.plan.decode.spec.worker_id)
    assert order == ["aggregated-1", "aggregated-0"] * 2


def test_from_which_factor_on_a_worker_is_slow_changes_while_the_router_runs(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster("aggregated-0")
    cluster.controller.reconfigure(RouterSettings(slow=SlowLimits(factor=7.0)))
    assert cluster.controller.speeds.limits.factor == 7.0


def test_a_burst_makes_no_worker_slow(make_cluster: MakeCluster) -> None:
    """Each prompt takes 50 ms. aggregated-0 gets six at once, which wait for each other as was foreseen; then
    six that take it 300 ms each."""
    names = ("aggregated-0", "aggregated-1")
    cluster = make_cluster(*names, slots=8, disaggregate=Disaggregate.NEVER)
    session, speeds = cluster.open(), cluster.controller.speeds

    def compute(name: str, worker: str, seconds: float = 0.05, *, at_once: int = 1) -> None:
        requests = [f"{worker}-{name}-{number}" for number in range(at_once)]
        for request in requests:
            (placed,) = cluster.admit(session, request, without=" ".join({*names} - {worker}))
            assert isinstance(placed, RequestPlaced)
            assert placed.plan.decode.spec.worker_id == worker
        for request in requests:
            cluster.clock.advance(seconds)
            cluster.first_token(session, request)
            cluster.done(session, request)

    for number in range(8):
        for worker in names:
            compute(f"alone-{number}", worker)
    cluster.clock.advance(60.0)
    for number in range(6):
        compute(f"again-{number}", names[1])
    compute("burst", names[0], at_once=6)
    assert speeds.slow_names() == set()
    cluster.clock.advance(60.0)
    for number in range(6):
        compute(f"later-{number}", names[1])
        compute(f"slow-{number}", names[0], 0.3)
    assert speeds.slow_names() == {names[0]}


def test_silence_is_measured_by_the_new_expiry(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", expiry_seconds=60.0)
    session = cluster.open()
    cluster.controller.reconfigure(RouterSettings(expiry_seconds=2.0))
    assert cluster.controller.next_wake() == cluster.clock.now() + 2.0
    cluster.after(2.0)
    assert cluster.admit(session, "a") == []


# -- after another router's term


def test_it_settles_before_it_places(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=1)
    cluster.controller.take_over(None, settle_seconds=0.4)
    session = cluster.open()
    assert cluster.admit(session, "a") == []
    wake = cluster.controller.next_wake()
    assert wake is not None
    assert wake == pytest.approx(cluster.clock.now() + 0.4)
    cluster.open(
        "other",
        (
            HeldRequest(
                RequestId("b"), TenantId("t"), None, Incarnation(WorkerId("aggregated-0"), 1), model="m"
            ),
        ),
    )
    assert cluster.after(0.4) == []  # its only seat is taken by what the other apiserver has told


def test_what_it_is_told_first_is_in_the_snapshot(make_cluster: MakeCluster) -> None:
    old, new = make_cluster("aggregated-0"), make_cluster("aggregated-0")
    session = old.open()
    old.admit(session, "a")
    snapshot = old.controller.snapshot()
    held = (
        HeldRequest(
            RequestId("a"), TenantId("t"), None, Incarnation(WorkerId("aggregated-0"), 1), 10, model="m"
        ),
    )
    new.controller.take_over(snapshot, settle_seconds=0.0)
    again = new.open(held=held)
    assert new.controller.snapshot() == snapshot
    new.close(again)
    new.open(held=held)  # given back in this term, so it is charged again
    assert new.controller.snapshot().fairness.highest > snapshot.fairness.highest


def test_adapters_of_requests_that_an_earlier_router_placed_count(
    make_cluster: Callable[..., Any],
) -> None:
    """They hold their slots: prefill's until the first token, decode's until the end."""
    cluster = make_cluster("prefill-0", "decode-0")
    held = replace(_held("a", prefill=True), adapter=AdapterDigest("digest"), choices=2)
    session = cluster.open(held=(held,))
    members = {str(m.spec.worker_id): m.slots.adapters for m in cluster.controller.membership}
    assert all("digest" in adapters for adapters in members.values())
    cluster.first_token(session, "a")
    assert [name for name, adapters in members.items() if "digest" in adapters] == ["decode-0"]
    cluster.done(session, "a")
    assert not any(map(len, members.values()))
