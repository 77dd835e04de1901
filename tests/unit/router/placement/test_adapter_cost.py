"""What an adapter adds to the cost of a placement, and which worker follows from it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from llmserve.core.adapters import AdapterReport, AdapterReports, AdapterTier, LoraShape
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.placement.adapter_cost import AdapterForecast
from llmserve.router.placement.kv_aware import KvAware
from llmserve.router.placement.planner import Candidate, CostParts, PlacementRequest, Plan, WorkerChoices
from llmserve.router.workers.adapter_loads import AdapterLoads
from llmserve.router.workers.speed import SlowLimits, WorkerSpeeds
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

MakeSpec = Callable[..., WorkerSpec]
A = AdapterDigest("a" * 64)
REQUEST = PlacementRequest("m", 100, adapter=A)
DRAM, DISK = 0.035, 0.09  # seconds of a load where nothing was measured


@pytest.fixture
def make_member(make_spec: MakeSpec) -> Callable[..., ClusterMember]:
    def make(name: str, tier: AdapterTier = AdapterTier.DISK) -> ClusterMember:
        spec = replace(make_spec(name, slots=64), lora=LoraShape(4), total_blocks=0)
        member = ClusterMember(spec, WorkerSlots(), 0.0)
        member.hear_reports(AdapterReports((AdapterReport(1, A, tier=tier, size_bytes=30_000_000),)))
        return member

    return make


def cost(member: ClusterMember, *, homes: str = "", crowded: str = "", now: float = 0.0) -> list[float]:
    """The load and the spread."""
    names = [frozenset(map(WorkerId, text.split())) for text in (homes, crowded)]
    return list(AdapterForecast(A, AdapterLoads(), names[0], names[1], now).at(member))


def test_a_load_costs_its_time_at_home_and_half_as_much_again_elsewhere(
    make_member: Callable[..., ClusterMember],
) -> None:
    member = make_member("decode-0")
    assert cost(member, homes="decode-0") == pytest.approx([DISK, 0.0])
    assert cost(member, homes="decode-1") == pytest.approx([DISK, DISK / 2])


@pytest.mark.parametrize("homes", ["", "decode-0"])
def test_what_is_loaded_costs_nothing(make_member: Callable[..., ClusterMember], homes: str) -> None:
    assert cost(make_member("decode-0", AdapterTier.DEVICE), homes=homes) == [0.0, 0.0]


@pytest.mark.parametrize(("now", "left"), [(1.0, 0.5), (1.25, 0.25), (2.0, 0.0)])
def test_a_second_request_waits_for_the_rest_of_the_load(
    make_member: Callable[..., ClusterMember], now: float, left: float
) -> None:
    member = make_member("decode-0")
    member.slots.take(A, ready_at=1.5)
    member.slots.take(A, ready_at=9.0)
    assert cost(member, now=now) == [left, 0.0]


def test_a_crowded_worker_gains_nothing_by_what_it_has(make_member: Callable[..., ClusterMember]) -> None:
    """All of them come to the cost of a load from disk, away from home."""
    for tier in (AdapterTier.DEVICE, AdapterTier.DRAM, AdapterTier.DISK):
        crowded = cost(make_member("decode-0", tier), crowded="decode-0")
        assert sum(crowded) == pytest.approx(1.5 * DISK)
    assert cost(make_member("decode-0", AdapterTier.SOURCE), crowded="decode-0")[1] == 0.0


def test_the_first_token_waits_for_the_load_where_the_prompt_is_computed() -> None:
    parts = CostParts(queue=1.0, load=2.0, compute=4.0, adapter=8.0, decode_adapter=16.0, spread=32.0)
    candidate = Candidate(None, WorkerId("decode-0"), parts)
    assert (candidate.first_token_seconds, candidate.total_seconds) == (15.0, 63.0)


@pytest.fixture
def chooser(clock: VirtualClock) -> KvAware:
    return KvAware(WorkerSpeeds(clock, SlowLimits()), clock, random.Random(5))


def chosen(chooser: KvAware, choices: WorkerChoices, request: PlacementRequest = REQUEST) -> Plan:
    plan = chooser.choose(choices, request, 10)
    assert plan is not None
    return plan


def whole(members: Sequence[ClusterMember]) -> WorkerChoices:
    return WorkerChoices((), (), members, members)


def test_it_goes_where_the_adapter_is_nearest(
    chooser: KvAware, make_member: Callable[..., ClusterMember]
) -> None:
    members = [make_member(f"aggregated-{number}") for number in range(8)]
    members[5] = make_member("aggregated-5", AdapterTier.DEVICE)
    plan = chosen(chooser, whole(members))
    assert plan.decode is members[5]
    assert plan.predicted is not None
    assert (plan.predicted.parts.adapter, plan.predicted.parts.decode_adapter) == (0.0, 0.0)


def test_without_any_difference_it_goes_home(
    chooser: KvAware, clock: VirtualClock, make_member: Callable[..., ClusterMember]
) -> None:
    members = [make_member(f"aggregated-{number}") for number in range(8)]
    first = chosen(chooser, whole(members))
    assert first.predicted is not None
    assert first.predicted.parts.adapter == pytest.approx(DISK)
    assert first.predicted.parts.spread == 0.0
    for seed in range(4):
        again = KvAware(WorkerSpeeds(clock, SlowLimits()), clock, random.Random(seed))
        assert chosen(again, whole(members)).decode is first.decode
    assert all(one.parts.spread == pytest.approx(DISK / 2) for one in first.candidates[1:])


def test_both_workers_of_a_pair_load_it(chooser: KvAware, make_member: Callable[..., ClusterMember]) -> None:
    prefill = [make_member(f"prefill-{n}", AdapterTier.DRAM) for n in range(6)]
    prefill[2] = make_member("prefill-2", AdapterTier.DEVICE)
    decode = [make_member(f"decode-{n}", AdapterTier.DISK) for n in range(6)]
    decode[4] = make_member("decode-4", AdapterTier.DRAM)
    plan = chosen(chooser, WorkerChoices(prefill, decode, (), ()))
    assert (plan.prefill, plan.decode) == (prefill[2], decode[4])
    parts = plan.candidates[0].parts
    assert parts.adapter == 0.0
    assert parts.decode_adapter == pytest.approx(DRAM)


def test_a_popular_adapter_makes_nobody_hot(
    chooser: KvAware, make_member: Callable[..., ClusterMember]
) -> None:
    """All requests are of one adapter, and one worker has it: without a bound, it would get all of them."""
    members = [make_member(f"aggregated-{number}") for number in range(8)]
    members[5] = make_member("aggregated-5", AdapterTier.DEVICE)
    counts = Counter(chosen(chooser, whole(members)).decode.spec.worker_id for _ in range(400))
    assert max(counts.values()) * 8 / 400 <= 1.5
    assert len(counts) >= 7


def test_requests_of_the_model_itself_pay_nothing(
    chooser: KvAware, make_member: Callable[..., ClusterMember]
) -> None:
    members = [make_member(f"aggregated-{number}") for number in range(8)]
    plan = chosen(chooser, whole(members), replace(REQUEST, adapter=AdapterDigest("")))
    assert all(one.parts.adapter == one.parts.spread == 0.0 for one in plan.candidates)
