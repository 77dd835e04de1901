"""Requests through the router and engines in virtual time: the seconds and counts that must come out."""

import random
from dataclasses import replace

import pytest

from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import TenantId, WorkerId
from llmserve.simulate.mix import RequestKind, RequestMix
from llmserve.simulate.report import Goals
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import Overrides
from llmserve.traces import TracedRequest
from tests.unit.simulate.conftest import MakeShape, Simulate

ALONE = {"disaggregated": False}
GOLD, BASIC = TenantId("gold"), TenantId("basic")


def test_one_request_takes_what_its_tokens_take(make_shape: MakeShape, simulate: Simulate) -> None:
    """100 prompt tokens at 1,000 a second, then 20 steps of 0.01 s."""
    report = simulate(make_shape(deployment=ALONE), [TracedRequest(0.0, 100, 21)])
    assert report.first_token.p50 == pytest.approx(0.1)
    assert report.gaps.mean == pytest.approx(0.01)
    assert report.total.p50 == pytest.approx(0.3)
    assert report.workers[0].busy == pytest.approx(1.0)
    assert report.served == 1
    assert report.output_tokens_per_second == pytest.approx(70)


def test_the_first_token_waits_for_no_transfer_the_second_does(
    make_shape: MakeShape, simulate: Simulate
) -> None:
    """1,000 bytes a token, 100 tokens: 0.8 ms at 1 Gbit/s, then a decode step."""
    over = Overrides(kv_bytes_per_token=1000.0, transfer_gbps=1.0)
    shape = make_shape(over=over, transfer={"mode": "pull"})
    report = simulate(shape, [TracedRequest(0.0, 100, 2)])
    assert report.first_token.p50 == pytest.approx(0.1)
    assert report.gaps.mean == pytest.approx(0.0108)


def test_a_push_hides_the_transfer(make_shape: MakeShape, simulate: Simulate) -> None:
    over = Overrides(kv_bytes_per_token=1000.0, transfer_gbps=1.0)
    report = simulate(make_shape(over=over, transfer={"mode": "push"}), [TracedRequest(0.0, 100, 3)])
    assert report.gaps.mean == pytest.approx(0.01)
    assert report.total.p50 == pytest.approx(0.12)


def test_a_worker_takes_as_long_as_its_speed_says(make_shape: MakeShape, simulate: Simulate) -> None:
    shape = replace(make_shape(deployment=ALONE), speeds={WorkerId("aggregated-0"): 0.5})
    report = simulate(shape, [TracedRequest(0.0, 100, 21)])
    assert report.first_token.p50 == pytest.approx(0.2)
    assert report.gaps.mean == pytest.approx(0.02)


@pytest.mark.parametrize(("mode", "alone"), [("always", 0.0), ("never", 1.0)])
def test_where_requests_ran_is_counted(
    make_shape: MakeShape, simulate: Simulate, mode: str, alone: float
) -> None:
    shape = make_shape(scheduling={"disaggregate": mode})
    report = simulate(shape, [TracedRequest(float(i), 100, 3) for i in range(4)])
    assert report.on_one_worker == alone
    assert [line.requests for line in report.workers] == [0 if mode == "never" else 4, 4]


def test_a_request_of_one_token_ends_at_prefill(make_shape: MakeShape, simulate: Simulate) -> None:
    report = simulate(make_shape(transfer={"mode": "push"}), [TracedRequest(0.0, 100, 1)])
    assert report.total.p50 == pytest.approx(0.1)
    assert {line.worker: line.busy for line in report.workers}["decode-0"] == 0.0


def test_equal_prefixes_are_computed_once_for_each_tenant(make_shape: MakeShape, simulate: Simulate) -> None:
    requests = [
        TracedRequest(float(i), 150, 2, tenant, prefix_names=(7,), run_tokens=96)
        for i, tenant in enumerate((GOLD, GOLD, BASIC))
    ]
    hits = 96 / 450
    assert simulate(make_shape(deployment=ALONE), requests).prefix_hits == pytest.approx(hits)
    shared = make_shape(deployment=ALONE, security={"kv_sharing": "cluster"})
    assert simulate(shared, requests).prefix_hits == pytest.approx(2 * hits)


def test_a_prompt_that_is_cached_but_for_a_token_has_its_first_token_after_one_step(
    make_shape: MakeShape, simulate: Simulate
) -> None:
    requests = [TracedRequest(at, 97, 50, prefix_names=(7,), run_tokens=96) for at in (0.0, 5.0)]
    report = simulate(make_shape(deployment=ALONE), requests)
    assert report.first_token.most == pytest.approx(0.097)
    assert report.first_token.mean == pytest.approx((0.097 + 0.01) / 2)


@pytest.mark.parametrize("mode", ["pull", "push"])
@pytest.mark.parametrize("disaggregated", [False, True])
def test_all_requests_end_where_blocks_are_short(
    make_shape: MakeShape, simulate: Simulate, disaggregated: bool, mode: str
) -> None:
    """40 blocks hold five of these requests, and 64 may run: some lose their blocks and compute again."""
    shape = make_shape(
        deployment={"disaggregated": disaggregated}, sim={"blocks": 40}, transfer={"mode": mode}
    )
    report = simulate(shape, [TracedRequest(0.01 * i, 40, 80) for i in range(60)])
    assert report.served == 60
    assert sum(line.preemptions for line in report.workers) > 0


def test_a_cluster_whose_requests_hold_all_blocks_of_each_other_is_told(
    make_shape: MakeShape, simulate: Simulate
) -> None:
    """Two prompts of four blocks fill eight, and each needs one more for its answer."""
    always = {"disaggregate": "always"}
    shape = make_shape(sim={"blocks": 8}, transfer={"mode": "push"}, scheduling=always)
    with pytest.raises(LLMServeError, match=r"2 requests have had no token .*engine\.sim\.blocks"):
        simulate(shape, [TracedRequest(0.0, 64, 2), TracedRequest(0.0, 64, 2)])


def test_refusals_are_counted_by_reason(make_shape: MakeShape, simulate: Simulate) -> None:
    shape = make_shape(
        deployment=ALONE,
        budgets={"max_requests_in_flight": 1},
        scheduling={"max_queued_requests": 2, "queue_timeout_seconds": 1.5},
    )
    requests = [TracedRequest(0.0, 1000, 10) for _ in range(5)] + [TracedRequest(0.1, 9000, 10)]
    report = simulate(shape, requests)
    assert report.refusals == {"InvalidRequest": 1, "QueueFull": 2, "QueueTimeout": 1}
    assert (report.requests, report.served) == (6, 2)
    assert report.queue.most == pytest.approx(1.09)


def test_good_requests_met_every_goal(make_shape: MakeShape, simulate: Simulate) -> None:
    requests = [TracedRequest(0.0, 100, 11), TracedRequest(10.0, 400, 11)]
    shape = make_shape(deployment=ALONE)
    assert simulate(shape, requests, Goals(first_token_seconds=0.2)).good == 1
    assert simulate(shape, requests, Goals(gap_seconds=0.02, total_seconds=1.0)).good == 2
    assert simulate(shape, requests, Goals(gap_seconds=0.005)).good == 0


@pytest.mark.parametrize("routing", ["kv_aware", "least_loaded", "round_robin"])
def test_the_same_seed_gives_the_same_report(make_shape: MakeShape, routing: str) -> None:
    mix = RequestMix(
        [(RequestKind(100, 20), 1), (RequestKind(800, 60), 1)], [(GOLD, 1)], 8.0, 20.0, shared_tokens=64
    )
    deployment = {"replicas": {"prefill": 2, "decode": 2}}
    shape = make_shape(deployment=deployment, scheduling={"routing": routing}, sim={"blocks": 2048})
    reports = []
    for _ in range(2):
        simulation = Simulation(shape, mix.requests(random.Random(5)), seed=5)
        simulation.run()
        reports.append(simulation.report(Goals()))
    assert reports[0] == reports[1]


def test_weights_deliver_their_shares(make_shape: MakeShape, simulate: Simulate) -> None:
    """Both ask for more than there is; 16 at a time."""
    mix = RequestMix([(RequestKind(50, 40), 1)], [(GOLD, 1), (BASIC, 1)], 60.0, 60.0)
    shape = make_shape(
        over=Overrides(weights=((GOLD, 4.0),)),
        deployment=ALONE,
        budgets={"max_requests_in_flight": 16},
        scheduling={"max_queued_requests": 10_000},
    )
    report = simulate(shape, mix.requests(random.Random(5)))
    assert report.jain is not None
    assert report.jain > 0.999
    assert {line.tenant: line.share for line in report.tenants}["gold"] == pytest.approx(0.8, rel=0.03)


def test_nothing_said_about_speed_is_an_error(make_shape: MakeShape) -> None:
    with pytest.raises(InvalidRequest, match="how fast are the engines"):
        make_shape(sim={"decode_step_seconds": 0.0})
    over = Overrides(decode_step_seconds=0.03, decode_workers=3, kv_blocks=99)
    shape = make_shape(over=over, sim={"decode_step_seconds": 0.0})
    assert [name for name, _ in shape.workers] == ["prefill-0", "decode-0", "decode-1", "decode-2"]
    assert (shape.timing.decode_step_seconds, shape.limits.total_blocks) == (0.03, 99)


def test_a_cluster_without_workers_is_an_error(make_shape: MakeShape) -> None:
    with pytest.raises(InvalidRequest, match="no prefill workers"):
        make_shape(over=Overrides(prefill_workers=0))
    with pytest.raises(InvalidRequest, match="decode workers do both"):
        make_shape(over=Overrides(prefill_workers=2), deployment=ALONE)


@pytest.mark.parametrize(("kept", "longest_gap"), [(0, 0.41), (3, 0.11)])
def test_prompts_leave_places_for_decoding(
    make_shape: MakeShape, simulate: Simulate, kept: int, longest_gap: float
) -> None:
    """Four prompts of 100 tokens come while a request decodes: in one step of 0.4 s, or one by one."""
    engine = {"max_decode_concurrency": 8, "min_decode_slots": 4 + kept}
    shape = make_shape(deployment=ALONE, engine=engine, scheduling={"engine_queue_seconds": 100})
    requests = [TracedRequest(0.0, 100, 100), *[TracedRequest(0.5, 100, 2)] * 4]
    report = simulate(shape, requests)
    assert report.gaps.most == pytest.approx(longest_gap)
    assert report.served == 5


def test_speculation_makes_answers_shorter_in_time_by_the_tokens_of_a_step(make_shape: MakeShape) -> None:
    speculation = {"method": "ngram", "tokens": 1}
    sim = {"acceptance": 0.5, "proposed_token_seconds": 0.003}
    timing = make_shape(engine={"speculation": speculation}, sim=sim).timing
    assert timing.decode_step_seconds == pytest.approx(0.01 / 1.5)
    assert timing.decode_seconds_per_sequence == pytest.approx(0.003 / 1.5)
    measured = make_shape(
        engine={"speculation": speculation}, sim=sim, over=Overrides(decode_step_seconds=0.03)
    ).timing
    assert measured.decode_step_seconds == 0.03, "what was measured contains it"
