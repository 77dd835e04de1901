"""The controller learns how fast its workers are, and says what it predicted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.ids import RequestId, TenantId, WorkerId
from llmserve.core.kv_params import HandoverMode
from llmserve.core.request import Outcome
from llmserve.router.events import Admit, Effect, HeldRequest, Incarnation, RequestStarted
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.handover import MeasuredHandover
from llmserve.router.workers.latency import LatencyModel

MakeCluster = Callable[..., Any]


def _started(effects: list[Effect]) -> RequestStarted:
    (started,) = [effect for effect in effects if isinstance(effect, RequestStarted)]
    return started


def _serve(cluster: Any, session: Any, name: str, prompt_tokens: int) -> RequestStarted:
    """1 ms for each prompt token, then 99 tokens of 20 ms."""
    placement = PlacementRequest("m", prompt_tokens)
    cluster.controller.requests.admit(session, Admit(RequestId(name), TenantId("t"), placement))
    cluster.clock.advance(prompt_tokens / 1000)
    started = _started(cluster.first_token(session, name))
    cluster.clock.advance(99 * 0.02)
    cluster.controller.requests.done(session, RequestId(name), Outcome.COMPLETED, 100)
    cluster.heartbeat("prefill-0")
    cluster.heartbeat("decode-0")
    return started


def _member(cluster: Any, name: str) -> Any:
    return next(m for m in cluster.controller.membership if m.spec.worker_id == name)


def test_predictions_come_to_what_is_measured(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", expiry_seconds=1e9)
    session = cluster.open()
    for number in range(60):
        started = _serve(cluster, session, f"r{number}", 200 + 37 * number % 800)
    assert started.predicted is not None
    assert started.predicted.first_token_seconds == pytest.approx(started.seconds, rel=0.1)
    assert _member(cluster, "decode-0").slots.latency.decode.seconds(1) == pytest.approx(0.02, rel=0.1)
    assert _member(cluster, "decode-0").slots.latency.prefill.samples == 0


def test_what_is_heard_late_is_measured_as_of_when_it_happened(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    session, requests = cluster.open(), cluster.controller.requests
    cluster.admit(session, "a")
    cluster.clock.advance(0.25)
    started = _started(requests.first_token(session, RequestId("a"), age_seconds=0.05))
    assert started.seconds == pytest.approx(0.2)
    cluster.clock.advance(1.0)
    requests.done(session, RequestId("a"), Outcome.COMPLETED, 101, age_seconds=0.05)
    (measured,) = cluster.controller.speeds.measured()[WorkerId("decode-0")]
    assert measured.seconds == pytest.approx(0.01)


@pytest.mark.parametrize("age_seconds", [1e9, float("inf"), float("nan"), -1e9])
def test_no_age_lets_a_request_end_before_it_began(make_cluster: MakeCluster, age_seconds: float) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    session, requests = cluster.open(), cluster.controller.requests
    cluster.admit(session, "a")
    cluster.clock.advance(1.0)
    assert 0 <= _started(requests.first_token(session, RequestId("a"), age_seconds)).seconds <= 1.0
    requests.done(session, RequestId("a"), Outcome.COMPLETED, 101, age_seconds=age_seconds)
    (measured,) = cluster.controller.speeds.measured()[WorkerId("decode-0")]
    assert measured.seconds == 0.0


def test_what_is_placed_is_a_backlog_until_it_starts_or_is_given_up(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", slots=8)
    session = cluster.open()
    backlog = _member(cluster, "prefill-0").slots.backlog
    for name in ("a", "b", "c"):
        cluster.admit(session, name)
    assert backlog.prompts == 3
    cluster.first_token(session, "a")
    cluster.done(session, "b", Outcome.CANCELLED)
    assert backlog.prompts == 1
    cluster.close(session)
    assert backlog.prompts == 0
    assert _member(cluster, "decode-0").slots.kv_tokens == 0


def test_a_request_of_an_earlier_router_teaches_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    held = HeldRequest(
        RequestId("a"),
        TenantId("t"),
        Incarnation(WorkerId("prefill-0"), 1),
        Incarnation(WorkerId("decode-0"), 1),
    )
    session = cluster.open("api", held=(held,))
    assert cluster.first_token(session, "a") == []
    cluster.done(session, "a")
    assert _member(cluster, "prefill-0").slots.latency is None
    assert _member(cluster, "decode-0").slots.latency is None


def test_a_first_token_that_is_told_twice_counts_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    session = cluster.open()
    cluster.admit(session, "a")
    assert _started(cluster.first_token(session, "a")).request_id == "a"
    assert cluster.first_token(session, "a") == []


def test_a_request_on_one_worker_teaches_of_that_one(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0")
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.first_token(session, "a")
    assert _member(cluster, "aggregated-0").slots.latency.prefill.samples == 1


def test_an_answer_counts_with_the_mean_of_what_decoded_at_its_ends(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0", slots=8)
    session, heard = cluster.open(), []
    cluster.controller.speeds.answer_generated = lambda *measured: heard.append(measured)
    for name in ("a", "b", "c", "d"):
        cluster.admit(session, name)
    cluster.first_token(session, "a")  # four are placed there
    cluster.clock.advance(1.0)
    cluster.controller.requests.done(session, RequestId("b"), Outcome.CANCELLED, 0)
    cluster.controller.requests.done(session, RequestId("c"), Outcome.CANCELLED, 0)
    cluster.controller.requests.done(session, RequestId("a"), Outcome.COMPLETED, 11)  # two are left
    assert heard == [(_member(cluster, "decode-0"), 10, 1.0, 3.0)]


def test_each_choice_of_an_answer_counts_by_its_own_tokens(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=8)
    session, heard = cluster.open(), []
    cluster.controller.speeds.answer_generated = lambda *measured: heard.append(measured)
    cluster.admit(session, "a", choices=3)
    cluster.first_token(session, "a")
    cluster.clock.advance(2.0)
    cluster.controller.requests.done(session, RequestId("a"), Outcome.COMPLETED, 63)
    assert heard == [(_member(cluster, "aggregated-0"), 20, 2.0, 3.0)]


def test_a_choice_is_expected_to_be_its_part_of_the_answer(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("aggregated-0", slots=8)
    session = cluster.open()
    cluster.admit(session, "runs")
    admit = Admit(RequestId("a"), TenantId("t"), PlacementRequest("m", 10), max_output_tokens=40, choices=4)
    (placed,) = cluster.controller.requests.admit(session, admit)
    step, each = LatencyModel().decode.fixed, LatencyModel().decode.slope
    assert placed.plan.predicted.parts.decode == pytest.approx(step + 2 * each + 10 * each)


def test_the_time_of_loading_is_no_computing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("prefill-0", "decode-0")
    session, heard = cluster.open(), []
    cluster.controller.speeds.prompt_computed = lambda *measured: heard.append(measured)
    cluster.admit(session, "a")
    work = session.entries[RequestId("a")].hold.work
    (predicted, *_) = work.plan.candidates
    candidate = predicted._replace(parts=predicted.parts._replace(load=0.25))
    work.plan = replace(work.plan, candidates=(candidate,))
    cluster.clock.advance(1.0)
    cluster.first_token(session, "a")
    assert heard == [(_member(cluster, "prefill-0"), 10, 1.0, 0.75)]


def _handed_over(cluster: Any, session: Any, name: str, seconds: float | None = 0.25) -> None:
    cluster.controller.requests.done(session, RequestId(name), Outcome.COMPLETED, 5, handover_seconds=seconds)


@pytest.fixture
def handed(make_cluster: MakeCluster) -> tuple[Any, Any, list[Any]]:
    """A cluster, a session, and the hand-overs that the speeds hear of."""
    cluster, heard = make_cluster("prefill-0", "prefill-1", "decode-0", slots=8), []
    cluster.controller.speeds.handed_over = lambda *measured: heard.append(measured)
    return cluster, cluster.open(), heard


def test_a_hand_over_counts_with_what_prefill_and_decode_took(handed: tuple[Any, Any, list[Any]]) -> None:
    cluster, session, heard = handed
    cluster.admit(session, "a")
    plan = session.entries[RequestId("a")].hold.work.plan
    cluster.clock.advance(0.5)
    cluster.first_token(session, "a")
    cluster.clock.advance(9.0)
    _handed_over(cluster, session, "a")
    measured = MeasuredHandover(HandoverMode.PULL, 10, 10, 0.5, 0.25)
    assert heard == [(plan.prefill, plan.decode, measured)]


def test_without_a_prediction_the_time_since_the_placement_counts(make_cluster: MakeCluster) -> None:
    cluster, heard = make_cluster("prefill-0", "decode-0", routing="round_robin"), []
    cluster.controller.speeds.handed_over = lambda *measured: heard.append(measured[2].compute_seconds)
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.clock.advance(0.5)
    cluster.first_token(session, "a")
    _handed_over(cluster, session, "a")
    assert heard == [0.5]


def test_prompts_that_are_computed_side_by_side_teach_nothing_of_hand_overs(
    handed: tuple[Any, Any, list[Any]],
) -> None:
    cluster, session, heard = handed
    for name in ("a", "b", "c"):  # two of them on one worker
        cluster.admit(session, name)
    workers = {
        name: session.entries[RequestId(name)].hold.work.plan.prefill.spec.worker_id
        for name in ("a", "b", "c")
    }
    for name in ("a", "b", "c"):
        cluster.clock.advance(1.0)
        cluster.first_token(session, name)
        _handed_over(cluster, session, name)
    alone = [name for name in workers if list(workers.values()).count(workers[name]) == 1]
    assert [measured[0].spec.worker_id for measured in heard] == [workers[name] for name in alone]
    assert len(alone) == 1


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize(
    ("ended_at", "measured"), [(0.5, [0.5, 0.25]), (0.75, [])], ids=["alone", "beside b"]
)
def test_hand_overs_of_several_apiservers_count_by_when_their_prompts_were_computed(
    make_cluster: MakeCluster, first: str, ended_at: float, measured: list[float]
) -> None:
    """The router hears of each first token a while after it came, and of one apiserver before the other."""
    cluster, heard = make_cluster("prefill-0", "decode-0", slots=8), []
    cluster.controller.speeds.handed_over = lambda *measured: heard.append(measured[2].compute_seconds)
    sessions = {"a": cluster.open("api-0"), "b": cluster.open("api-1")}
    cluster.admit(sessions["a"], "a")
    cluster.clock.advance(0.625)  # a may be computed, and api-0 waits for company
    cluster.admit(sessions["b"], "b")
    cluster.clock.advance(0.375)  # now both are
    ages = {"a": 1.0 - ended_at, "b": 0.125}
    for name in sorted(sessions, reverse=first == "b"):
        cluster.controller.requests.first_token(sessions[name], RequestId(name), ages[name])
    for name, session in sessions.items():
        _handed_over(cluster, session, name)
    assert heard == measured


def test_a_prompt_of_an_earlier_router_is_company_too(make_cluster: MakeCluster) -> None:
    held = HeldRequest(
        RequestId("held"),
        TenantId("t"),
        Incarnation(WorkerId("prefill-0"), 1),
        Incarnation(WorkerId("decode-0"), 1),
    )
    cluster, heard = make_cluster("prefill-0", "decode-0", slots=8), []
    cluster.controller.speeds.handed_over = lambda *measured: heard.append(measured)
    session = cluster.open("api", held=(held,))
    cluster.admit(session, "a")
    cluster.clock.advance(1.0)
    cluster.first_token(session, "held")
    cluster.first_token(session, "a")
    _handed_over(cluster, session, "a")
    assert heard == []


def test_what_was_not_handed_over_teaches_nothing_of_it(handed: tuple[Any, Any, list[Any]]) -> None:
    cluster, session, heard = handed
    cluster.admit(session, "no hand-over")
    cluster.first_token(session, "no hand-over")
    _handed_over(cluster, session, "no hand-over", None)
    cluster.admit(session, "waits for a first token")
    _handed_over(cluster, session, "waits for a first token")
    assert heard == []


def test_one_worker_for_both_hands_nothing_over(make_cluster: MakeCluster) -> None:
    cluster, heard = make_cluster("aggregated-0"), []
    cluster.controller.speeds.handed_over = lambda *measured: heard.append(measured)
    session = cluster.open()
    cluster.admit(session, "a")
    cluster.first_token(session, "a")
    _handed_over(cluster, session, "a")
    assert heard == []


def test_the_seconds_of_a_slow_worker_count_as_those_of_all(make_cluster: MakeCluster) -> None:
    cluster, heard = make_cluster("prefill-0", "prefill-1", "decode-0"), []
    speeds = cluster.controller.speeds
    slow, decode = _member(cluster, "prefill-0"), _member(cluster, "decode-0")
    speeds.handovers.learn = lambda *measured: heard.append(measured)
    measured = MeasuredHandover(HandoverMode.PUSH, 1000, 2000, 3.0, 0.25)
    speeds.handed_over(slow, decode, measured)
    slow.slots.latency = LatencyModel()
    slow.slots.latency.prefill.fixed, slow.slots.latency.prefill.slope = 1.0, 0.002
    speeds.of_model("m").prefill.fixed, speeds.of_model("m").prefill.slope = 0.5, 0.001
    speeds.handed_over(slow, decode, measured)
    assert heard == [(slow, decode, measured), (slow, decode, measured._replace(compute_seconds=1.5))]
