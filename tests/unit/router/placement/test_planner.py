import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import WorkerId
from llmserve.core.request import EngineLoad, WorkerRole
from llmserve.router.placement.baselines import FreeSlots, LeastLoaded, RoundRobin, ShortEngineQueue
from llmserve.router.placement.filters import HasFreeSlot, NotBackedUp, NotExcluded
from llmserve.router.placement.planner import (
    ActiveRules,
    Candidate,
    CostParts,
    Disaggregate,
    NoPlan,
    PlacementRequest,
    Plan,
    Planner,
    WorkerChoices,
)
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

MakeSpec = Callable[..., WorkerSpec]
REQUEST = PlacementRequest("m", 10)


@pytest.fixture
def membership(clock: VirtualClock) -> ClusterMembership:
    return ClusterMembership(clock, expiry_seconds=4.0)


@pytest.fixture
def planner(membership: ClusterMembership) -> Planner:
    return Planner(
        membership,
        ActiveRules(
            (NotExcluded(), HasFreeSlot()),
            LeastLoaded(((1.0, FreeSlots()), (0.5, ShortEngineQueue())), random.Random(3)),
            Disaggregate.ALWAYS,
        ),
    )


def _names(plan: Plan | NoPlan) -> tuple[str, str]:
    assert isinstance(plan, Plan)
    return (plan.prefill.spec.worker_id if plan.prefill else "", plan.decode.spec.worker_id)


def _fill(membership: ClusterMembership, name: str, requests: int) -> None:
    for member in membership:
        if member.spec.worker_id == name:
            for _ in range(requests):
                member.slots.take()


def _without(*names: str) -> PlacementRequest:
    return PlacementRequest("m", 10, frozenset(map(WorkerId, names)))


def test_takes_the_least_loaded_of_each_role(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    for name in ("prefill-0", "prefill-1", "decode-0", "decode-1"):
        membership.register(make_spec(name, slots=4))
    _fill(membership, "prefill-0", 1)
    _fill(membership, "decode-1", 3)
    assert _names(planner.plan(REQUEST)) == ("prefill-1", "decode-0")


def test_load_is_relative_to_capacity(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("aggregated-0", slots=10))
    membership.register(make_spec("aggregated-1", slots=2))
    _fill(membership, "aggregated-0", 3)
    _fill(membership, "aggregated-1", 1)
    assert _names(planner.plan(REQUEST)) == ("", "aggregated-0")


def test_an_engine_with_a_queue_is_avoided(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("aggregated-0"))
    membership.register(make_spec("aggregated-1"))
    membership.heartbeat(WorkerId("aggregated-0"), 1, EngineLoad(waiting_requests=2))
    assert {_names(planner.plan(REQUEST)) for _ in range(20)} == {("", "aggregated-1")}


def test_ties_are_broken_at_random(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    for number in range(4):
        membership.register(make_spec(f"aggregated-{number}"))
    counts = Counter(_names(planner.plan(REQUEST)) for _ in range(400))
    assert len(counts) == 4
    assert max(counts.values()) < 150


def test_full_workers_are_not_used(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("prefill-0", slots=1))
    membership.register(make_spec("decode-0", slots=1))
    assert planner.obstacle(REQUEST) is None
    _fill(membership, "prefill-0", 1)
    assert planner.plan(REQUEST) is planner.obstacle(REQUEST) is NoPlan.FULL


def test_a_pair_or_one_worker_for_both_by_load(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    for name in ("prefill-0", "decode-0", "aggregated-0"):
        membership.register(make_spec(name, slots=4))
    assert _names(planner.plan(REQUEST)) == ("prefill-0", "decode-0")
    _fill(membership, "decode-0", 2)
    assert _names(planner.plan(REQUEST)) == ("", "aggregated-0")
    membership.deregister(WorkerId("prefill-0"), 1)
    _fill(membership, "aggregated-0", 3)
    assert _names(planner.plan(REQUEST)) == ("", "aggregated-0")


def test_excluded_workers_are_not_used_while_there_are_others(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    for name in ("prefill-0", "decode-0", "decode-1"):
        membership.register(make_spec(name, slots=1))
    assert {_names(planner.plan(_without("decode-0"))) for _ in range(9)} == {("prefill-0", "decode-1")}
    _fill(membership, "decode-1", 1)
    alone = _without("decode-0")
    assert planner.plan(alone) is planner.obstacle(alone) is NoPlan.BLOCKED, "another could go to decode-0"
    assert _names(planner.plan(REQUEST)) == ("prefill-0", "decode-0")


def test_the_only_worker_of_a_role_is_used_again(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("prefill-0"))
    membership.register(make_spec("decode-0"))
    membership.suspect(WorkerId("decode-0"), 1, "reset by peer")
    assert isinstance(planner.plan(_without("decode-0")), NoPlan)  # not before it is heard
    membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad())
    assert _names(planner.plan(_without("decode-0"))) == ("prefill-0", "decode-0")


def test_a_model_without_workers_does_not_stop_another(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("aggregated-0", model="other"))
    assert planner.plan(REQUEST) is NoPlan.FULL, "all requests of the model fare alike"
    assert _names(planner.plan(PlacementRequest("other"))) == ("", "aggregated-0")


def test_a_role_that_is_missing_gives_no_plan(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec
) -> None:
    assert planner.plan(REQUEST) is NoPlan.FULL
    membership.register(make_spec("decode-0"))
    assert planner.plan(REQUEST) is NoPlan.FULL
    assert membership.available("m", WorkerRole.PREFILL) == []


def test_what_an_engine_has_before_it_is_bounded(clock: VirtualClock, make_spec: MakeSpec) -> None:
    """By predicted seconds, but one prompt may always wait behind the one that is computed."""
    rule = NotBackedUp(clock, seconds=0.5)
    member = ClusterMember(make_spec("prefill-0"), WorkerSlots(), heard_at=0.0)
    request = PlacementRequest("m")
    backlog = member.slots.backlog
    a = backlog.add(3.0, clock.now())
    assert rule.keep([member], request)
    b = backlog.add(3.0, clock.now())
    assert not rule.keep([member], request)
    backlog.remove(a, clock.now())
    assert rule.keep([member], request)
    for _ in range(9):
        backlog.add(0.05, clock.now())
    backlog.remove(b, clock.now())
    assert rule.keep([member], request), "many short ones are 0.45 s"
    backlog.add(0.1, clock.now())
    assert not rule.keep([member], request)


def test_prompts_that_take_just_the_bound_are_too_much(clock: VirtualClock, make_spec: MakeSpec) -> None:
    member = ClusterMember(make_spec("prefill-0"), WorkerSlots(), heard_at=0.0)
    for _ in range(2):
        member.slots.backlog.add(0.25, clock.now())
    assert NotBackedUp(clock, seconds=0.5).keep([member], REQUEST) == []


@pytest.fixture
def stuck() -> set[WorkerId]:
    """Workers that gave requests no output in time."""
    return set()


@pytest.fixture
def auto(membership: ClusterMembership, stuck: set[WorkerId]) -> Planner:
    chooser = LeastLoaded(((1.0, FreeSlots()),), random.Random(3))
    return Planner(
        membership, ActiveRules((NotExcluded(), HasFreeSlot()), chooser, Disaggregate.AUTO, lambda: stuck)
    )


@pytest.mark.parametrize(("away", "other"), [("prefill-0", "decode-0"), ("decode-0", "prefill-0")])
def test_one_role_does_all_while_the_other_is_stuck(
    membership: ClusterMembership,
    auto: Planner,
    stuck: set[WorkerId],
    make_spec: MakeSpec,
    away: str,
    other: str,
) -> None:
    for name in ("prefill-0", "decode-0"):
        membership.register(make_spec(name))
    assert _names(auto.plan(REQUEST)) == ("prefill-0", "decode-0")
    stuck.add(WorkerId(away))
    plan = auto.plan(REQUEST)
    assert _names(plan) == ("", other)
    assert isinstance(plan, Plan)
    why = "it gave a request no output in time"
    assert plan.note == f"no {away[:-2]} worker can be used ({away}: {why})"


def test_where_pairs_are_wanted_a_stuck_worker_is_better_than_none(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    chooser = LeastLoaded(((1.0, FreeSlots()),), random.Random(3))
    rules = ActiveRules((), chooser, Disaggregate.ALWAYS, lambda: {WorkerId("prefill-0")})
    for name in ("prefill-0", "decode-0"):
        membership.register(make_spec(name))
    assert _names(Planner(membership, rules).plan(REQUEST)) == ("prefill-0", "decode-0")


def test_a_stuck_aggregated_worker_gets_nothing_while_a_decode_worker_can_do_all(
    membership: ClusterMembership, auto: Planner, stuck: set[WorkerId], make_spec: MakeSpec
) -> None:
    for name in ("decode-0", "aggregated-0"):
        membership.register(make_spec(name))
    _fill(membership, "decode-0", 1)
    assert _names(auto.plan(REQUEST)) == ("", "aggregated-0")
    stuck.add(WorkerId("aggregated-0"))
    assert _names(auto.plan(REQUEST)) == ("", "decode-0")


def test_where_all_are_stuck_they_are_used(
    membership: ClusterMembership, auto: Planner, stuck: set[WorkerId], make_spec: MakeSpec
) -> None:
    for name in ("prefill-0", "decode-0"):
        membership.register(make_spec(name))
        stuck.add(WorkerId(name))
    assert _names(auto.plan(REQUEST)) == ("prefill-0", "decode-0")


def test_one_that_is_stuck_among_others_does_not_empty_its_role(
    membership: ClusterMembership, auto: Planner, stuck: set[WorkerId], make_spec: MakeSpec
) -> None:
    for name in ("prefill-0", "decode-0", "decode-1"):
        membership.register(make_spec(name))
    stuck.add(WorkerId("decode-0"))
    assert _names(auto.plan(REQUEST))[0] == "prefill-0"


def test_a_role_that_is_only_full_is_waited_for(
    membership: ClusterMembership, auto: Planner, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("prefill-0", slots=4))
    membership.register(make_spec("decode-0", slots=1))
    _fill(membership, "decode-0", 1)
    assert auto.plan(REQUEST) is NoPlan.FULL


@pytest.mark.parametrize("role", ["decode", "aggregated"])
def test_prompts_leave_the_places_that_are_kept_for_decoding(
    membership: ClusterMembership, auto: Planner, make_spec: MakeSpec, clock: VirtualClock, role: str
) -> None:
    """Of four places two are kept: a third prompt waits, until one of the others decodes."""
    membership.register(replace(make_spec(f"{role}-0", slots=4), min_decode_slots=2))
    (member,) = membership
    prompts = []
    for has_place in (True, True, False):
        assert isinstance(auto.plan(REQUEST), Plan) is has_place
        prompts.append(member.slots.backlog.add(1.0, clock.now()))
    for prompt in prompts[:2]:
        member.slots.backlog.remove(prompt, clock.now())
    assert _names(auto.plan(REQUEST)) == ("", f"{role}-0")


def test_a_request_that_only_decodes_takes_a_place_that_is_kept(
    membership: ClusterMembership, planner: Planner, make_spec: MakeSpec, clock: VirtualClock
) -> None:
    membership.register(make_spec("prefill-0"))
    membership.register(replace(make_spec("decode-0", slots=2), min_decode_slots=1))
    next(m for m in membership if m.spec.worker_id == "decode-0").slots.backlog.add(1.0, clock.now())
    assert _names(planner.plan(REQUEST)) == ("prefill-0", "decode-0")


def test_prefill_workers_serve_alone_also_where_they_had_nothing_to_do(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    for chooser in (LeastLoaded(((1.0, FreeSlots()),), random.Random(3)), RoundRobin()):
        planner = Planner(membership, ActiveRules((), chooser, Disaggregate.NEVER))
        membership.register(make_spec("prefill-0"))
        membership.register(make_spec("decode-0"))
        assert _names(planner.plan(REQUEST)) == ("", "decode-0")
        membership.suspect(WorkerId("decode-0"), 1, "reset by peer")
        assert _names(planner.plan(REQUEST)) == ("", "prefill-0")
        membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad())


def test_a_note_says_when_a_prefill_worker_does_what_decode_workers_usually_do(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    """Where pairs are never wanted, nobody misses a prefill worker."""
    planner = _planner(membership, Disaggregate.NEVER)
    for name in ("prefill-0", "decode-0"):
        membership.register(make_spec(name))
    notes = []
    for away in ("prefill-0", "decode-0"):
        membership.suspect(WorkerId(away), 1, "reset by peer")
        plan = planner.plan(REQUEST)
        assert isinstance(plan, Plan)
        notes.append(plan.note)
        membership.heartbeat(WorkerId(away), 1, EngineLoad())
    assert notes == ["", "no decode worker can be used (decode-0: reset by peer)"]


def test_a_first_token_waits_for_the_queue_the_loading_and_the_computing() -> None:
    parts = CostParts(queue=1.0, load=2.0, compute=4.0, handover=8.0, decode=16.0)
    candidate = Candidate(WorkerId("prefill-0"), WorkerId("decode-0"), parts)
    assert (candidate.first_token_seconds, candidate.total_seconds) == (7.0, 31.0)


def test_what_is_not_known_of_a_request_counts_nothing(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    asked = []

    class Asked(RoundRobin):
        def choose(
            self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int
        ) -> Plan | None:
            asked.append((request.prompt_tokens, output_tokens))
            return super().choose(choices, request, output_tokens)

    membership.register(make_spec("aggregated-0"))
    assert isinstance(Planner(membership, ActiveRules((), Asked())).plan(PlacementRequest("m")), Plan)
    assert asked == [(0, 0)]
    assert set(CostParts()) == {0.0}


def _planner(membership: ClusterMembership, mode: Disaggregate) -> Planner:
    return Planner(membership, ActiveRules((), RoundRobin(), mode))


def test_who_waited_where_no_worker_is_hears_why(membership: ClusterMembership) -> None:
    missing = _planner(membership, Disaggregate.AUTO).missing_workers("m")
    assert missing is not None
    assert missing.message == "no prefill and no decode worker of model m is registered"
    assert missing.retry_after_seconds == 10.0


@pytest.mark.parametrize("name", ["prefill-0", "decode-0", "aggregated-0"])
def test_a_worker_of_any_role_is_enough(
    membership: ClusterMembership, make_spec: MakeSpec, name: str
) -> None:
    membership.register(make_spec(name))
    assert _planner(membership, Disaggregate.AUTO).missing_workers("m") is None


def test_where_the_manifest_wants_pairs_both_are_needed(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    planner = _planner(membership, Disaggregate.ALWAYS)
    membership.register(make_spec("prefill-0"))
    missing = planner.missing_workers("m")
    assert missing is not None
    assert missing.message == "no decode worker of model m is registered"
    membership.register(make_spec("decode-0"))
    assert planner.missing_workers("m") is None
