"""Which placement costs least: one cause at a time, on workers whose paces are known."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import WorkerId
from llmserve.core.request import EngineLoad, PairStatus
from llmserve.kvstore.directory.directory import KvTier
from llmserve.router.placement.filters import HasFreeSlot, NotExcluded
from llmserve.router.placement.kv_aware import KvAware
from llmserve.router.placement.planner import (
    ActiveRules,
    Candidate,
    Disaggregate,
    NoPlan,
    PlacementRequest,
    Plan,
    Planner,
)
from llmserve.router.prefix.match import PrefixMatch, TierRun
from llmserve.router.workers.latency import LatencyModel, LineFit
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.speed import SlowLimits, WorkerSpeeds
from llmserve.router.workers.worker import ClusterMember, WorkerSpec, WorkerState

MakeSpec = Callable[..., WorkerSpec]
LONG = PlacementRequest("m", 1600)


class Field:
    """1,000 prompt tokens a second on each worker, steps of 10 ms; 1 MB of KV a token."""

    def __init__(self, clock: VirtualClock, make_spec: MakeSpec) -> None:
        self.clock, self._make_spec = clock, make_spec
        self.membership = ClusterMembership(clock, expiry_seconds=1e9)
        self.speeds = WorkerSpeeds(clock, SlowLimits())
        self.planner = self.with_mode(Disaggregate.AUTO)

    def with_mode(self, mode: Disaggregate) -> Planner:
        return Planner(
            self.membership,
            ActiveRules(
                (NotExcluded(), HasFreeSlot()), KvAware(self.speeds, self.clock, random.Random(3)), mode
            ),
        )

    def add(self, *names: str, **spec: Any) -> None:
        shape = {"block_bytes": 16_000_000} | spec
        for name in names:
            self.membership.register(replace(self._make_spec(name, slots=64, **shape), total_blocks=10**6))
            self[name].slots.latency = _latency(0.001)

    def __getitem__(self, name: str) -> ClusterMember:
        return next(member for member in self.membership if member.spec.worker_id == name)

    def run(self, name: str, requests: int) -> None:
        for _ in range(requests):
            self[name].slots.take()

    def plan(self, request: PlacementRequest = LONG, output_tokens: int = 100) -> Plan:
        plan = self.planner.plan(request, output_tokens)
        assert isinstance(plan, Plan)
        return plan

    def chosen(self, request: PlacementRequest = LONG) -> tuple[str, str]:
        plan = self.plan(request)
        return (plan.prefill.spec.worker_id if plan.prefill else "", plan.decode.spec.worker_id)


def _latency(seconds_per_token: float) -> LatencyModel:
    return LatencyModel(LineFit(0.0, seconds_per_token, 1000.0), LineFit(0.01, 0.001, 10.0))


def _held(tokens: int, *names: str) -> PlacementRequest:
    return replace(LONG, match=PrefixMatch({WorkerId(name): tokens // 16 for name in names}))


def _link(peer: str, gigabytes: float, **fields: Any) -> PairStatus:
    status = PairStatus(peer, "nixl", True, "closed", "", 0.001, gigabytes * 1e9, 0, 0, 0.0, 0)
    return replace(status, **fields)


@pytest.fixture
def field(clock: VirtualClock, make_spec: MakeSpec) -> Field:
    return Field(clock, make_spec)


# -- the prompt


def test_the_parts_of_a_prediction(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    field.run("decode-0", 2)
    field["prefill-0"].slots.backlog.add(0.5, field.clock.now())
    link = _link("prefill-0", 10.0)
    field.membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad(pairs=(link,)))
    predicted = field.plan().predicted
    assert isinstance(predicted, Candidate)
    assert (predicted.prefill, predicted.decode) == ("prefill-0", "decode-0")
    parts = predicted.parts
    assert (parts.queue, parts.load) == (0.5, 0.0)
    assert parts.compute == pytest.approx(1.6)
    assert parts.handover == pytest.approx(0.005 + 0.001 + 1.6e9 / 10e9)  # a leg of unknown pace, the wire
    assert parts.decode == pytest.approx(0.013 + 64 * 0.001 * 2)
    assert predicted.first_token_seconds == pytest.approx(2.1)
    assert predicted.total_seconds == pytest.approx(sum(parts))


def test_a_worker_with_work_is_avoided_until_it_is_done(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    other = field["prefill-0"].slots.backlog.add(1.0, field.clock.now())
    assert {field.chosen()[0] for _ in range(10)} == {"prefill-1"}
    field["prefill-0"].slots.backlog.remove(other, field.clock.now())
    assert {field.chosen()[0] for _ in range(30)} == {"prefill-0", "prefill-1"}


def test_a_slow_worker_gets_less(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    field["prefill-1"].slots.latency = _latency(0.002)
    assert {field.chosen()[0] for _ in range(10)} == {"prefill-0"}


def test_a_new_worker_is_taken_to_be_like_its_peers(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    field["prefill-1"].slots.latency = None
    for _ in range(50):
        field.speeds.prompt_computed(field["prefill-0"], 1000, 1.0, 1.0)
    assert {field.chosen()[0] for _ in range(30)} == {"prefill-0", "prefill-1"}


def test_what_is_cached_need_not_be_computed(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    plan = field.plan(_held(800, "prefill-1"))
    assert plan.prefill is field["prefill-1"]
    assert plan.computed_tokens == 800


def test_a_queue_that_is_longer_than_what_the_cache_saves(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    field["prefill-1"].slots.backlog.add(1.0, field.clock.now())
    assert field.chosen(_held(800, "prefill-1"))[0] == "prefill-0"


def test_the_store_serves_all_of_them_when_loading_is_faster(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    match = PrefixMatch({}, (TierRun(KvTier.DRAM, 50), TierRun(KvTier.OBJECT, 40)))
    plan = field.plan(replace(LONG, match=match))
    assert plan.predicted is not None
    # DRAM: 800 tokens of 1 MB at 5 GB/s. The object tier would take longer than computing 640 tokens.
    assert plan.predicted.parts.load == pytest.approx(0.001 + 0.8e9 / 5e9)
    assert plan.computed_tokens == 800


# -- the answer


def test_decode_goes_where_fewer_run(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    field.run("decode-0", 10)
    assert {field.chosen()[1] for _ in range(10)} == {"decode-1"}


def test_decode_goes_where_there_is_room(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    field.membership.heartbeat(WorkerId("decode-1"), 1, EngineLoad(used_blocks=10**6 - 10))
    assert {field.chosen()[1] for _ in range(10)} == {"decode-0"}


def test_placements_that_no_heartbeat_has_told_yet_take_room(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    field["decode-0"].slots.kv_tokens = 16 * 10**6
    assert {field.chosen()[1] for _ in range(10)} == {"decode-1"}


def test_the_pair_with_the_better_transport(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0", "decode-1")
    for decode, fast in (("decode-0", "prefill-0"), ("decode-1", "prefill-1")):
        pairs = tuple(_link(f"prefill-{n}", 20.0 if f"prefill-{n}" == fast else 0.5) for n in range(2))
        field.membership.heartbeat(WorkerId(decode), 1, EngineLoad(pairs=pairs))
    pairs_taken = {field.chosen() for _ in range(20)}
    assert pairs_taken == {("prefill-0", "decode-0"), ("prefill-1", "decode-1")}


def test_a_pair_that_cannot_exchange_kv_costs_the_prompt_twice(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    refused = _link("prefill-0", 0.0, chosen=False, breaker="refused")
    field.membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad(pairs=(refused,)))
    assert {field.chosen()[1] for _ in range(10)} == {"decode-1"}


# -- one worker or two


def test_a_short_prompt_runs_on_one_worker_and_a_long_one_on_two(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    assert field.chosen(PlacementRequest("m", 4)) == ("", "decode-0")
    assert field.chosen(LONG) == ("prefill-0", "decode-0")


def test_a_mostly_cached_prompt_runs_where_it_is_cached(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    assert field.chosen(_held(1584, "decode-1")) == ("", "decode-1")


def test_those_that_decode_are_not_held_up_for_it(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    request = PlacementRequest("m", 8)
    assert field.chosen(request) == ("", "decode-0")
    field.run("decode-0", 40)
    assert field.chosen(request) == ("prefill-0", "decode-0")


def test_the_threshold_follows_the_measured_transfer(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    request = PlacementRequest("m", 100)
    assert field.chosen(request) == ("prefill-0", "decode-0")
    slow = _link("prefill-0", 10.0, transfers=4, seconds=2.0)
    field.membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad(pairs=(slow,)))
    assert field.chosen(request) == ("", "decode-0")


def test_without_a_prefill_worker_decode_does_all(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    field.membership.suspect(WorkerId("prefill-0"), 1, "gone")
    assert field.chosen(LONG) == ("", "decode-0")


def test_full_prefill_workers_are_waited_for(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    field.run("prefill-0", 64)
    assert field.planner.plan(LONG, 100) is NoPlan.FULL


def test_the_manifest_may_force_either(field: Field) -> None:
    field.add("prefill-0", "decode-0")
    always, never = field.with_mode(Disaggregate.ALWAYS), field.with_mode(Disaggregate.NEVER)
    short, long = always.plan(PlacementRequest("m", 1), 10), never.plan(LONG, 10)
    assert isinstance(short, Plan)
    assert isinstance(long, Plan)
    assert (short.prefill, long.prefill) == (field["prefill-0"], None)
    field.membership.deregister(WorkerId("prefill-0"), 1)
    assert always.plan(LONG, 10) is NoPlan.FULL
    assert isinstance(never.plan(LONG, 10), Plan)


@pytest.mark.parametrize("mode", [Disaggregate.AUTO, Disaggregate.NEVER])
def test_a_prefill_worker_does_all_while_no_decode_worker_is_there(field: Field, mode: Disaggregate) -> None:
    field.add("prefill-0", "decode-0")
    field.membership.suspect(WorkerId("decode-0"), 1, "gone")
    plan = field.with_mode(mode).plan(LONG, 10)
    assert isinstance(plan, Plan)
    assert (plan.prefill, plan.decode) == (None, field["prefill-0"])
    assert plan.candidates[0].decode == "prefill-0"


# -- all in all


def test_equals_are_chosen_at_random(field: Field) -> None:
    field.add(*(f"{role}-{number}" for role in ("prefill", "decode") for number in range(6)))
    counts = Counter(name for _ in range(600) for name in field.chosen())
    assert len(counts) == 12
    assert max(counts.values()) <= 150


@pytest.mark.parametrize(("ahead_seconds", "workers"), [(0.0009, 2), (0.002, 1)])
def test_differences_that_no_prediction_makes_out_are_left_to_chance(
    field: Field, ahead_seconds: float, workers: int
) -> None:
    """A request of 31 ms: 2 % and half a millisecond are 1.1 ms."""
    field.add("aggregated-0", "aggregated-1")
    field["aggregated-0"].slots.backlog.add(ahead_seconds, field.clock.now())
    short = PlacementRequest("m", 10)
    assert len({field.chosen(short) for _ in range(30)}) == workers


def test_the_best_candidates_are_told_the_chosen_one_first(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "prefill-2", "decode-0")
    for seconds, name in enumerate(("prefill-0", "prefill-1", "prefill-2")):
        field[name].slots.backlog.add(float(seconds), field.clock.now())
    candidates = field.plan().candidates
    assert [candidate.prefill for candidate in candidates] == ["prefill-0", None, "prefill-1"]
    assert [c.total_seconds for c in candidates] == sorted(c.total_seconds for c in candidates)


def test_a_cache_draws_no_more_than_its_share(field: Field) -> None:
    field.add(*(f"prefill-{number}" for number in range(4)), "decode-0")
    counts = Counter(field.chosen(_held(1584, "prefill-2"))[0] for _ in range(400))
    assert 100 < counts["prefill-2"] <= 150


def test_the_worked_example_of_the_docs(field: Field) -> None:
    """docs/placement.md"""
    field.add("prefill-0", "prefill-1", "decode-0", "decode-1", block_bytes=16 * 128 * 1024)
    field.speeds.of_model("m").prefill = LineFit(0.005, 0.0001, 1000.0)
    links = tuple(_link(f"prefill-{number}", 10.0) for number in range(2))
    for name, running in (("decode-0", 10), ("decode-1", 4), ("prefill-0", 0), ("prefill-1", 0)):
        field[name].slots.latency = LatencyModel(LineFit(0.005, 0.0001, 1000.0), LineFit(0.02, 0.0002, 10.0))
        field.run(name, running)
        field.membership.heartbeat(WorkerId(name), 1, EngineLoad(pairs=links))
    field["prefill-1"].slots.backlog.add(0.1, field.clock.now())
    match = PrefixMatch({WorkerId("prefill-1"): 200}, (TierRun(KvTier.DRAM, 100),))
    plan = field.plan(PlacementRequest("m", 4000, match=match))
    assert [(c.prefill, c.decode, round(c.total_seconds, 3)) for c in plan.candidates] == [
        ("prefill-1", "decode-1", 0.316),
        ("prefill-1", "decode-0", 0.394),
        ("prefill-0", "decode-1", 0.419),
    ]
    assert [round(part, 3) for part in plan.candidates[0].parts[:5]] == [0.1, 0.0, 0.085, 0.058, 0.072]
    assert [round(part, 3) for part in plan.candidates[2].parts[:5]] == [0.0, 0.043, 0.245, 0.058, 0.072]
    alone = field.with_mode(Disaggregate.NEVER).plan(PlacementRequest("m", 4000, match=match), 100)
    assert isinstance(alone, Plan)
    assert alone.predicted is not None
    assert (alone.decode, round(alone.predicted.total_seconds, 2)) == (field["decode-1"], 1.32)


# -- a worker that had more than its share counts as if it had nothing cached


def _crowd(field: Field, *names: str, request: PlacementRequest = LONG) -> None:
    """Gives these workers all placements, until they are over their share."""
    for member in field.membership:
        member.state = WorkerState.AVAILABLE if member.spec.worker_id in names else WorkerState.SUSPECT
    field.membership._available.clear()
    for _ in range(40):
        field.plan(request)
    for member in field.membership:
        member.state = WorkerState.AVAILABLE
    field.membership._available.clear()


def _spreads(plan: Plan) -> dict[tuple[str, str], float]:
    return {(c.prefill or "", c.decode): round(c.parts.spread, 3) for c in plan.candidates}


def test_the_cache_of_a_crowded_prefill_worker_saves_nothing(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    _crowd(field, "prefill-0", "decode-0")
    plan = field.plan(_held(800, "prefill-0"))
    assert _spreads(plan)["prefill-0", "decode-0"] == 0.8
    assert _spreads(plan)["prefill-1", "decode-0"] == 0.0


def test_a_crowded_worker_without_a_cache_is_no_worse(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0")
    _crowd(field, "prefill-0", "decode-0")
    assert set(_spreads(field.plan()).values()) == {0.0}


def test_the_cache_of_a_crowded_decode_worker_saves_no_handover(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    _crowd(field, "prefill-0", "decode-0")
    plan = field.plan(_held(800, "decode-0"))
    # 800 MB over a link that nobody has measured: 2 GB/s.
    assert _spreads(plan)["prefill-0", "decode-0"] == 0.4
    assert _spreads(plan)["prefill-0", "decode-1"] == 0.0


def test_the_cache_of_a_crowded_worker_that_does_both_saves_nothing(field: Field) -> None:
    field.add("aggregated-0", "aggregated-1")
    _crowd(field, "aggregated-0")
    field.run("aggregated-0", 3)
    plan = field.plan(_held(800, "aggregated-0"))
    # 800 tokens at 1 ms each, and as much for each of the three requests that would wait meanwhile.
    assert _spreads(plan)["", "aggregated-0"] == 3.2
    assert _spreads(plan)["", "aggregated-1"] == 0.0


def test_what_is_crowded_is_compared_with_its_own_role_and_model(field: Field) -> None:
    field.add("prefill-0", "prefill-1", "decode-0", "decode-1")
    for name in ("prefill-2", "decode-2"):
        field.add(name, model="other")
    for _ in range(40):
        field.plan(PlacementRequest("other", 1600))
    assert set(_spreads(field.plan(_held(800, "prefill-0", "decode-0"))).values()) == {0.0}


# -- the shortlist: of many workers, only the best four of each role are paired


def _linked(field: Field, *near: str) -> None:
    """Decode workers fetch quickly from these prefill workers, and slowly from the others."""
    prefill = [m.spec.worker_id for m in field.membership if m.spec.role == "prefill"]
    links = tuple(_link(name, 100.0 if name in near else 1.0) for name in prefill)
    for member in field.membership:
        if member.spec.role == "decode":
            field.membership.heartbeat(member.spec.worker_id, 1, EngineLoad(pairs=links))


def test_a_crowded_prefill_worker_keeps_nobody_off_the_shortlist(field: Field) -> None:
    field.add(*(f"prefill-{number}" for number in range(5)), "decode-0")
    _crowd(field, "prefill-0", "decode-0")
    _linked(field, "prefill-4")
    field["prefill-0"].slots.backlog.add(0.2, field.clock.now())
    field["prefill-4"].slots.backlog.add(0.1, field.clock.now())
    assert field.chosen(_held(800, "prefill-0"))[0] == "prefill-4"


def test_the_fifth_best_prefill_worker_is_not_on_the_shortlist(field: Field) -> None:
    """Though the pair with it would cost least."""
    field.add(*(f"prefill-{number}" for number in range(5)), "decode-0")
    for number in range(5):
        field[f"prefill-{number}"].slots.backlog.add(number / 100, field.clock.now())
    _linked(field, "prefill-4")
    assert field.chosen()[0] != "prefill-4"
    field.membership.suspect(WorkerId("prefill-3"), 1, "gone")
    assert field.chosen()[0] == "prefill-4", "it is the fourth"


def test_a_cached_prefill_worker_is_on_the_shortlist(field: Field) -> None:
    field.add(*(f"prefill-{number}" for number in range(6)), "decode-0")
    for number in range(5):
        field[f"prefill-{number}"].slots.backlog.add(0.7, field.clock.now())
    field["prefill-5"].slots.backlog.add(1.4, field.clock.now())
    assert field.chosen(_held(800, "prefill-5"))[0] == "prefill-5"


def test_a_crowded_decode_worker_keeps_nobody_off_the_shortlist(field: Field) -> None:
    field.add("prefill-0", *(f"decode-{number}" for number in range(5)))
    _crowd(field, "prefill-0", "decode-0")
    field.run("decode-0", 3)
    field.run("decode-4", 2)
    quick = (_link("prefill-0", 100.0),)
    field.membership.heartbeat(WorkerId("decode-4"), 1, EngineLoad(pairs=quick))
    assert field.chosen(_held(800, "decode-0"))[1] == "decode-4"


def test_a_crowded_worker_for_both_keeps_nobody_off_the_shortlist(field: Field) -> None:
    field.add(*(f"aggregated-{number}" for number in range(2)))
    _crowd(field, "aggregated-0")
    field["aggregated-1"].slots.backlog.add(1.0, field.clock.now())
    plan = field.plan(_held(800, "aggregated-0"))
    # 1.6 s for itself and as much for another, as if nothing were cached, against a second more.
    assert [(c.decode, round(c.total_seconds, 1)) for c in plan.candidates] == [
        ("aggregated-0", 3.2),
        ("aggregated-1", 4.2),
    ]


def test_prompts_that_a_decode_worker_computes_delay_its_steps(field: Field) -> None:
    field.add("prefill-0", "decode-0", "decode-1")
    before = {str(c.decode): c.parts.decode for c in field.plan().candidates if c.prefill}
    field["decode-0"].slots.backlog.add(0.01, field.clock.now())
    after = {str(c.decode): c.parts.decode for c in field.plan().candidates if c.prefill}
    assert after["decode-0"] - before["decode-0"] == pytest.approx(0.01)
    assert after["decode-1"] == before["decode-1"]


@pytest.mark.parametrize(
    ("blocks", "used", "missing"),
    [(1000, 0, 0.0), (107, 0, 0.0), (106, 0, 4 / 1700), (200, 150, 900 / 1700), (9, 9, 1.0)],
)
def test_kv_that_has_no_room_waits_for_those_that_run(
    field: Field, blocks: int, used: int, missing: float
) -> None:
    """The request needs 1,700 tokens, in blocks of 16; its steps take 11 ms."""
    field.add("prefill-0", "decode-0")
    free = field.plan().candidates[0].parts.decode
    member = field["decode-0"]
    member.spec = replace(member.spec, total_blocks=blocks)
    field.membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad(used_blocks=used))
    decode = next(c.parts.decode for c in field.plan().candidates if c.prefill)
    assert decode - free == pytest.approx(missing * 100 * 0.011)
