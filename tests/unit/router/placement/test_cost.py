from collections.abc import Callable
from dataclasses import replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import WorkerId
from llmserve.core.request import EngineLoad, PairStatus
from llmserve.kvstore.directory.directory import KvTier
from llmserve.router.placement.cost import CachedPrompt, CostForecast, PrefixOverlap
from llmserve.router.placement.kv_aware import _Look
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.prefix.match import PrefixMatch, TierRun
from llmserve.router.workers.latency import LatencyModel, LineFit
from llmserve.router.workers.speed import SlowLimits, WorkerSpeeds
from llmserve.router.workers.worker import ClusterMember, KvShape, WorkerSlots, WorkerSpec

A, B = WorkerId("a"), WorkerId("b")
MakeSpec = Callable[..., WorkerSpec]


@pytest.fixture
def shape(make_spec: MakeSpec) -> KvShape:
    """A block has 16 tokens and 16,000 bytes."""
    return make_spec("prefill-0", block_bytes=16_000).kv_shape


def test_nothing_held_is_empty(shape: KvShape) -> None:
    overlap = PrefixOverlap(PrefixMatch(), 100, shape)
    assert overlap.at(A) == CachedPrompt(0, [])


def test_tokens_of_whole_blocks_and_never_the_last_token(shape: KvShape) -> None:
    match = PrefixMatch({A: 2})
    assert PrefixOverlap(match, 100, shape).at(A).device_tokens == 32
    assert PrefixOverlap(match, 32, shape).at(A).device_tokens == 16
    assert PrefixOverlap(match, 0, shape).at(A).device_tokens == 0


def test_what_can_be_loaded_after_what_is_there(shape: KvShape) -> None:
    match = PrefixMatch({A: 3}, (TierRun(KvTier.DRAM, 5), TierRun(KvTier.NVME, 100)))
    (dram, nvme) = PrefixOverlap(match, 161, shape).at(A).loads
    assert (dram.tokens, nvme.tokens) == (32, 80)
    assert dram.seconds == pytest.approx(0.001 + 32_000 / 5e9)
    assert nvme.seconds == pytest.approx(0.003 + 80_000 / 1.5e9)
    assert [load.tokens for load in PrefixOverlap(match, 161, shape).at(B).loads] == [80, 80]


def test_a_block_that_no_tier_holds_ends_loading(shape: KvShape) -> None:
    match = PrefixMatch({A: 3}, (TierRun(None, 3), TierRun(KvTier.DRAM, 2)))
    overlap = PrefixOverlap(match, 1000, shape)
    assert [load.tokens for load in overlap.at(A).loads] == [32]
    assert overlap.at(B).loads == []


def test_a_worker_that_has_not_told_its_block_size(make_spec: MakeSpec) -> None:
    shape = make_spec("prefill-0", block_size_tokens=0).kv_shape
    overlap = PrefixOverlap(PrefixMatch({A: 3}, (TierRun(KvTier.DRAM, 5),)), 100, shape)
    assert overlap.at(A) == CachedPrompt(0, [])


def test_blocks_of_one_token_end_before_the_last_token(make_spec: MakeSpec) -> None:
    shape = make_spec("prefill-0", block_size_tokens=1).kv_shape
    match = PrefixMatch({A: 2}, (TierRun(KvTier.DRAM, 9),))
    held, loads = PrefixOverlap(match, 4, shape).at(A)
    assert (held, [load.tokens for load in loads]) == (2, [1])
    assert PrefixOverlap(match, 0, shape).at(A) == CachedPrompt(0, [])


def test_the_object_tier_is_slow(shape: KvShape) -> None:
    (load,) = PrefixOverlap(PrefixMatch({}, (TierRun(KvTier.OBJECT, 2),)), 100, shape).at(A).loads
    assert load == pytest.approx((32, 0.050 + 32_000 / 0.2e9))


def test_nothing_is_loaded_after_the_prompt_s_end(shape: KvShape) -> None:
    match = PrefixMatch({}, (TierRun(KvTier.DRAM, 100), TierRun(KvTier.NVME, 5)))
    assert [load.tokens for load in PrefixOverlap(match, 161, shape).at(A).loads] == [160]


# -- the forecast: 1,000 bytes a token; a prompt of 160 tokens, an answer of 100

PREFILL_FIXED, PREFILL_TOKEN = 0.004, 0.0002
STEP, SEQUENCE = 0.02, 0.001
Forecast = Callable[..., CostForecast]


@pytest.fixture
def member(make_spec: MakeSpec) -> Callable[..., ClusterMember]:
    def make(name: str = "decode-0", *, running: int = 0, **load: object) -> ClusterMember:
        slots = WorkerSlots()
        slots.placed_requests = running
        slots.latency = LatencyModel(
            LineFit(PREFILL_FIXED, PREFILL_TOKEN, 1000.0), LineFit(STEP, SEQUENCE, 16.0)
        )
        spec = make_spec(name, block_bytes=16_000)
        return ClusterMember(spec, slots, 0.0, load=EngineLoad(**load))  # type: ignore[arg-type]

    return make


@pytest.fixture
def forecast(shape: KvShape, clock: VirtualClock) -> Forecast:
    def make(match: PrefixMatch | None = None, *, prompt: int = 160, answer: int = 100) -> CostForecast:
        request = PlacementRequest("m", prompt, match=match or PrefixMatch())
        return CostForecast(request, answer, WorkerSpeeds(clock, SlowLimits()), shape, clock.now())

    return make


def seconds_for(tokens: int) -> float:
    return PREFILL_FIXED + PREFILL_TOKEN * tokens


def test_a_prompt_waits_and_is_computed(
    forecast: Forecast, member: Callable[..., ClusterMember], clock: VirtualClock
) -> None:
    worker = member("prefill-0")
    worker.slots.backlog.add(0.5, clock.now() - 0.2)
    cost = forecast().prompt(worker)
    assert cost == pytest.approx((0.3, 0.0, seconds_for(160), 160))
    assert cost.seconds == pytest.approx(0.3 + seconds_for(160))
    assert forecast().busy(worker) == pytest.approx(0.3)


def test_what_is_on_the_device_is_not_computed(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    worker = member("prefill-0")
    warm = forecast(PrefixMatch({worker.spec.worker_id: 4}))
    assert warm.prompt(worker) == pytest.approx((0.0, 0.0, seconds_for(96), 96))
    assert warm.cold(worker) == pytest.approx((0.0, 0.0, seconds_for(160), 160))


def test_what_is_faster_to_load_is_loaded(forecast: Forecast, member: Callable[..., ClusterMember]) -> None:
    stored = forecast(PrefixMatch({}, (TierRun(KvTier.DRAM, 4), TierRun(KvTier.NVME, 4))))
    dram, nvme = 0.001 + 64_000 / 5e9, 0.003 + 64_000 / 1.5e9
    cost = stored.prompt(member("prefill-0"))
    assert cost == pytest.approx((0.0, dram + nvme, seconds_for(32), 32))
    assert cost.seconds == pytest.approx(dram + nvme + seconds_for(32))


def test_what_is_slower_to_load_is_computed_with_all_that_follows(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    runs = (TierRun(KvTier.DRAM, 2), TierRun(KvTier.OBJECT, 2), TierRun(KvTier.DRAM, 2))
    cost = forecast(PrefixMatch({}, runs)).prompt(member("prefill-0"))
    assert cost == pytest.approx((0.0, 0.001 + 32_000 / 5e9, seconds_for(128), 128))


def test_loading_as_slow_as_computing_is_not_worth_it(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    worker = member("prefill-0")
    assert worker.slots.latency is not None
    worker.slots.latency.prefill.slope = (0.001 + 32_000 / 5e9) / 32
    assert forecast(PrefixMatch({}, (TierRun(KvTier.DRAM, 2),))).prompt(worker).tokens == 160


def test_a_decode_worker_is_slowed_down_by_what_runs_there(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    assert forecast().decode(member()) == pytest.approx(STEP + SEQUENCE)
    slowdown = 64 * SEQUENCE * 3  # of the first 64 tokens only
    assert forecast().decode(member(running=3)) == pytest.approx(STEP + 4 * SEQUENCE + slowdown)
    short = forecast(answer=10).decode(member(running=3))
    assert short == pytest.approx(STEP + 4 * SEQUENCE + 10 * SEQUENCE * 3)


@pytest.mark.parametrize(
    ("used_blocks", "placed_tokens", "missing_tokens"),
    [(0, 0, 0), (83, 0, 0), (84, 0, 4), (0, 1341, 1), (92, 1400, 132), (100, 0, 260), (200, 0, 260)],
)
def test_a_request_waits_for_the_kv_room_that_is_missing(
    forecast: Forecast,
    member: Callable[..., ClusterMember],
    used_blocks: int,
    placed_tokens: int,
    missing_tokens: int,
) -> None:
    """The worker has 1,600 tokens of room; the request needs 260."""
    worker, step = member(used_blocks=used_blocks), STEP + SEQUENCE
    worker.slots.kv_tokens = placed_tokens
    assert forecast().decode(worker) == pytest.approx(step + missing_tokens / 260 * 100 * step)


def test_running_requests_wait_while_a_prompt_is_computed(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    costs = forecast()
    for running, held_up in ((0, 1), (1, 1), (3, 3)):
        worker = member(running=running)
        assert costs.hold_up(worker, costs.prompt(worker)) == pytest.approx(160 * PREFILL_TOKEN * held_up)


def test_a_typical_hand_over_moves_what_decode_does_not_have(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    worker = member()
    assert forecast().typical_handover(worker) == pytest.approx(0.003 + 160_000 / 2e9)
    assert forecast().saved_handover(worker) == 0.0
    warm = forecast(PrefixMatch({worker.spec.worker_id: 4}))
    assert warm.typical_handover(worker) == pytest.approx(0.003 + 96_000 / 2e9)
    assert warm.saved_handover(worker) == pytest.approx(64_000 / 2e9)


def test_a_hand_over_is_a_leg_and_the_bytes_over_the_pair_s_link(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    leg = LatencyModel().prefill.fixed
    prefill, decode = member("prefill-0"), member()
    assert forecast().handover(prefill, decode) == pytest.approx(leg + 0.003 + 160_000 / 2e9)
    fast = PairStatus("prefill-0", "tcp", True, "closed", "", 0.01, 1e8, 0, 0, 0.0, 0)
    decode.load = EngineLoad(pairs=(fast,))
    assert forecast().handover(prefill, decode) == pytest.approx(leg + 0.01 + 160_000 / 1e8)
    decode.load = EngineLoad(pairs=(replace(fast, breaker="refused"),))
    assert forecast().handover(prefill, decode) == pytest.approx(leg + seconds_for(160))


def test_a_worker_of_unknown_capacity_has_room(
    forecast: Forecast, member: Callable[..., ClusterMember]
) -> None:
    worker = member(used_blocks=50)
    worker.spec = replace(worker.spec, total_blocks=0)
    assert forecast().decode(worker) == pytest.approx(STEP + SEQUENCE)


# -- what the chooser ranks many workers by: the sum of the parts that it then computes for a few


@pytest.mark.parametrize("crowded", [False, True])
def test_workers_are_ranked_by_the_sum_of_a_placement_s_parts(
    forecast: Forecast, member: Callable[..., ClusterMember], clock: VirtualClock, crowded: bool
) -> None:
    worker = member(running=3)
    worker.slots.backlog.add(0.5, clock.now())
    name = worker.spec.worker_id
    costs = forecast(PrefixMatch({name: 4}))
    look = _Look(costs, frozenset({name} if crowded else ()))
    saved = 64 * PREFILL_TOKEN if crowded else 0.0
    whole, leg = look.whole(worker), look.second_leg(worker)
    assert whole.parts.spread == pytest.approx(saved + saved * 3)
    assert look.whole_seconds(worker) == pytest.approx(whole.seconds)
    assert look.first_leg(worker).spread == pytest.approx(saved)
    assert look.prefill_seconds(worker) == pytest.approx(0.5 + seconds_for(96) + saved)
    assert leg.decode == pytest.approx(costs.decode(worker) + 0.5)
    handover = costs.typical_handover(worker)
    assert look.decode_seconds(worker) == pytest.approx(leg.decode + handover + leg.spread)
    assert leg.spread == pytest.approx(64_000 / 2e9 if crowded else 0.0)
