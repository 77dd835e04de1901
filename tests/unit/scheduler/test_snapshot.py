"""What a scheduler knows that nobody tells the next one, and that the next one goes on from it."""

import json
from dataclasses import replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import Fit, QueuedRequest
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.snapshot import FairnessSnapshot, SchedulerSnapshot
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits
from tests.unit.scheduler.simulation import Client, Simulation, drawn

GOLD, BASIC = TenantId("gold"), TenantId("basic")
RATE = ClusterLimits(tenants=TenantLimits(TenantLimit(requests_per_second=10.0)))


def scheduler(clock: VirtualClock, limits: ClusterLimits = RATE) -> Scheduler:
    made = Scheduler(clock, Policy(limits=limits))
    made.set_capacities({"": Capacity(1000, 100.0, hands_over=True)})
    return made


def request(name: str, tenant: TenantId = GOLD, prompt: int = 10, *, charged: bool = False) -> QueuedRequest:
    return QueuedRequest(RequestId(name), tenant, 0.0, 1e9, prompt, charged=charged)


def started(one: Scheduler, *requests: QueuedRequest) -> int:
    for each in requests:
        one.queue.offer(each, lambda _: Fit.PLACED)
    return len(one.queue.dispatch(lambda _: Fit.PLACED))


def handed_over(older: Scheduler, clock: VirtualClock, after: float = 0.0) -> Scheduler:
    """Through JSON, as a new router does; `after` seconds later, on a clock that has nothing in common."""
    newer = scheduler(clock)
    newer.restore(SchedulerSnapshot.from_json(older.snapshot().to_json()).aged(after))
    return newer


def test_json_and_back() -> None:
    whole = SchedulerSnapshot(
        FairnessSnapshot(7.5, 9.0, {GOLD: 8.0}), {"a rate": {GOLD: 0.25, BASIC: -0.5}}, -0.1, {BASIC: 31.5}
    )
    assert SchedulerSnapshot.from_json(whole.to_json()) == whole
    assert SchedulerSnapshot.from_json(SchedulerSnapshot().to_json()) == SchedulerSnapshot()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[1]", "no snapshot"),
        (json.dumps({"version": 2}), "version 2"),
        (json.dumps({"version": 1}), "no snapshot"),
        (json.dumps({"version": 1, "fairness": {}, "more": 1}), "no snapshot"),
    ],
)
def test_what_is_none_of_ours_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SchedulerSnapshot.from_json(text)


def test_a_rate_is_not_doubled() -> None:
    clock = VirtualClock(100.0)
    first = scheduler(clock)
    assert started(first, *(request(f"a{index}") for index in range(30))) == 11  # what one second saves up
    later = VirtualClock(5.0)
    second = handed_over(first, later, after=0.3)
    assert started(second, *(request(f"b{index}") for index in range(30))) == 3
    later.advance(0.1)
    assert len(second.queue.dispatch(lambda _: Fit.PLACED)) == 1


def test_without_a_snapshot_it_would_be() -> None:
    assert started(scheduler(VirtualClock()), *(request(f"b{index}") for index in range(30))) == 11


def test_what_runs_is_charged_once() -> None:
    clock = VirtualClock()
    first = scheduler(clock)
    started(first, request("a", prompt=1000), request("b", BASIC))
    second = handed_over(first, clock)
    for name, tenant, prompt in (("a", GOLD, 1000), ("b", BASIC, 10)):
        second.queue.adopt(request(name, tenant, prompt, charged=True))
    assert second.snapshot() == first.snapshot()
    for one in (first, second):
        one.queue.release(RequestId("a"), 20)
        one.queue.check_integrity()
    assert second.snapshot() == first.snapshot()


def test_what_was_generated_before_the_hand_over_is_charged_once() -> None:
    clock = VirtualClock()
    first = scheduler(clock)
    started(first, request("a"))
    first.queue.correct(RequestId("a"), 5000)
    second = handed_over(first, clock)
    second.queue.adopt(request("a", charged=True), 5000)
    for one in (first, second):
        one.queue.correct(RequestId("a"), 6000)
        one.queue.release(RequestId("a"), 7000)
        one.queue.check_integrity()
    assert second.snapshot() == first.snapshot()


def test_kv_io_goes_on_being_paced() -> None:
    clock, limits = VirtualClock(), ClusterLimits(kv_io_bytes_per_second=1000.0)
    first = scheduler(clock, limits)
    assert started(first, request("a", prompt=100)) == 1  # 10 s of the link
    second = scheduler(clock, limits)
    second.restore(first.snapshot().aged(4.0))
    assert started(second, request("b")) == 0
    clock.advance(5.0)  # and 1 s was saved up
    assert len(second.queue.dispatch(lambda _: Fit.PLACED)) == 1


def test_what_answers_have_is_remembered() -> None:
    clock = VirtualClock()
    first = scheduler(clock)
    started(first, request("a"))
    first.queue.release(RequestId("a"), 40)
    second = handed_over(first, clock)
    assert second.snapshot().output_tokens == {GOLD: 40.0}


def test_tenants_that_rest_drop_out() -> None:
    clock = VirtualClock()
    one = scheduler(clock)
    started(one, request("a"), request("b", BASIC))
    assert one.snapshot().spent_seconds["the tenant's requests per second"].keys() == {GOLD, BASIC}
    clock.advance(10.0)
    assert all(not tenants for tenants in one.snapshot().spent_seconds.values())


LOAD = [
    Client("gold", 40.0, drawn((100, 400), (10, 300))),
    Client("basic", 40.0, drawn((100, 400), (10, 300))),
]


@pytest.mark.parametrize(("told", "holds"), [(True, True), (False, False)])
def test_four_to_one_holds_over_takeovers(told: bool, holds: bool) -> None:
    policy = Policy(max_queued_requests=1000, weights={GOLD: 4.0})
    simulation = Simulation(policy, LOAD, slots=8, seconds=200.0, warm_up_seconds=5.0)
    for when in range(6, 200, 2):
        simulation.take_over_at(float(when), told=told)
    served = simulation.run().served_tokens
    assert (served["gold"] / served["basic"] == pytest.approx(4.0, rel=0.03)) is holds


def test_each_model_goes_on_with_its_own_turns_and_answers() -> None:
    clock = VirtualClock()
    first = Scheduler(clock, Policy())
    first.set_capacities({"a": Capacity(9, 1.0), "b": Capacity(9, 1.0)})
    for model, tokens in (("a", 40), ("b", 7)):
        one = replace(request(model), model=model)
        first.queue.adopt(one)
        first.queue.release(one.request_id, tokens)
    text = first.snapshot().to_json()
    second = Scheduler(clock, Policy())
    second.restore(SchedulerSnapshot.from_json(text))
    assert second.snapshot() == first.snapshot(), "also before anything has come"
    second.queue.of("a")
    assert second.snapshot() == first.snapshot(), "and while only one has"
    assert {name: dict(one.output_tokens) for name, one in second.snapshot().models.items()} == {
        "a": {GOLD: 40.0},
        "b": {GOLD: 7.0},
    }


def test_a_snapshot_of_one_model_is_read_by_earlier_releases_and_theirs_by_any_model() -> None:
    clock = VirtualClock()
    first = scheduler(clock)
    started(first, request("a"))
    first.queue.release(RequestId("a"), 40)
    text = first.snapshot().to_json()
    assert set(json.loads(text)) == {"version", "fairness", "spent_seconds", "kv_io_seconds", "output_tokens"}
    second = Scheduler(clock, Policy())
    second.restore(SchedulerSnapshot.from_json(text))
    second.queue.of("named")
    assert second.snapshot().output_tokens == {GOLD: 40.0}
    assert second.snapshot().fairness == first.snapshot().fairness


def test_a_model_without_its_parts_is_no_snapshot() -> None:
    fields = json.loads(SchedulerSnapshot().to_json())
    wrong: tuple[object, ...] = ({"a": {}}, {"a": 1}, 3)
    for models in wrong:
        with pytest.raises(ValueError, match="it is no snapshot of a scheduler"):
            SchedulerSnapshot.from_json(json.dumps(fields | {"models": models}))
