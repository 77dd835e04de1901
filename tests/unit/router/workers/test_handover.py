"""Pull or push: what was measured decides, trials are few and paid for, and noise does not change the way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from llmserve.core.kv_params import HandoverMode
from llmserve.core.request import EngineLoad, PairStatus
from llmserve.router.workers.handover import (
    HandoverChoice,
    HandoverCosts,
    HandoverPolicy,
    HandoverReason,
    HandoverWays,
    MeasuredHandover,
)
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

PULL, PUSH = HandoverMode.PULL, HandoverMode.PUSH
AUTO = HandoverPolicy("auto", 512)

MakeMember = Callable[..., ClusterMember]


@pytest.fixture
def member(make_spec: Callable[..., WorkerSpec]) -> MakeMember:
    """shape: fields of its KvShape."""

    def make(name: str, endpoints: tuple[str, ...] = ("127.0.0.1:1",), **shape: Any) -> ClusterMember:
        spec = replace(make_spec(name, **shape), handover_endpoints=endpoints)
        return ClusterMember(spec, WorkerSlots(), 0.0)

    return make


def _linked(decode: ClusterMember, transport: str) -> ClusterMember:
    pair = PairStatus("prefill-0", transport, True, "closed", "", 0.001, 1e9, 0, 0, 0.0, 0)
    return replace(decode, load=EngineLoad(pairs=(pair,)))


def _measured(mode: HandoverMode, compute: float, added: float, tokens: int = 1000) -> MeasuredHandover:
    return MeasuredHandover(mode, tokens, tokens, compute, added)


def _choices(
    ways: HandoverWays, pull: tuple[float, float], push: tuple[float, float], count: int = 200
) -> Iterator[HandoverChoice]:
    """Hand-overs of 1,000 tokens, one after the other. pull, push: seconds to compute, and those added."""
    for _ in range(count):
        choice = ways.choose(1000, 1000)
        ways.learn(_measured(choice.mode, *(pull if choice.mode is PULL else push)))
        yield choice


# -- what the manifest says, and what the workers can


@pytest.mark.parametrize(("mode", "way"), [("pull", PULL), ("push", PUSH)])
def test_the_manifest_decides_for_every_length(member: MakeMember, mode: Any, way: HandoverMode) -> None:
    for tokens in (1, 100_000):
        choice = HandoverCosts().choose(
            HandoverPolicy(mode, 512), member("prefill-0"), member("decode-0"), 1, tokens
        )
        assert choice == (way, HandoverReason.SETTING, 0.0, 0.0)


@pytest.mark.parametrize("mode", ["auto", "push"])
@pytest.mark.parametrize(
    "other",
    [{"layout": "LBHNC/amx"}, {"block_size_tokens": 64}, {"tensor_parallel": 2}, {"block_bytes": 1 << 19}],
)
def test_workers_of_different_shapes_pull(member: MakeMember, mode: Any, other: dict[str, Any]) -> None:
    costs, policy, pulled = HandoverCosts(), HandoverPolicy(mode, 1), (PULL, HandoverReason.UNLIKE)
    assert costs.choose(policy, member("prefill-0", **other), member("decode-0"), 9, 9)[:2] == pulled
    assert costs.choose(policy, member("prefill-0"), member("decode-0", **other), 9, 9)[:2] == pulled


@pytest.mark.parametrize("mode", ["auto", "push"])
def test_a_prefill_worker_that_does_not_say_where_it_is_reached_is_pulled_from(
    member: MakeMember, mode: Any
) -> None:
    silent = member("prefill-0", endpoints=())
    choice = HandoverCosts().choose(HandoverPolicy(mode, 1), silent, member("decode-0"), 9, 9)
    assert choice == HandoverChoice(PULL, HandoverReason.UNLIKE)


def test_short_prompts_are_never_pushed(member: MakeMember) -> None:
    costs, prefill, decode = HandoverCosts(), member("prefill-0"), member("decode-0")
    short = {costs.choose(AUTO, prefill, decode, 511, 511) for _ in range(100)}
    assert short == {HandoverChoice(PULL, HandoverReason.SHORT)}
    assert PUSH in {costs.choose(AUTO, prefill, decode, 512, 512).mode for _ in range(100)}


# -- what was measured


def test_it_begins_with_pulls_and_tries_one_push_in_four_until_four_are_measured() -> None:
    choices = list(_choices(HandoverWays(), (1.0, 0.05), (1.2, 0.0), 17))
    assert [number for number, choice in enumerate(choices, 1) if choice.mode is PUSH] == [4, 8, 12, 16]
    assert {choice.reason for choice in choices[:3]} == {HandoverReason.UNKNOWN}
    assert choices[3].reason is HandoverReason.TRIAL
    assert choices[0] == (PULL, HandoverReason.UNKNOWN, 0.0, 0.0)
    assert choices[16][:2] == (PULL, HandoverReason.CHEAPER)
    assert choices[16].pull_seconds == pytest.approx(1.05)
    assert choices[16].push_seconds == pytest.approx(1.2)


def test_a_push_that_costs_prefill_more_than_it_hides_is_left() -> None:
    ways = HandoverWays()
    choices = list(_choices(ways, (1.87, 0.026), (1.994, 0.008)))
    assert ways.mode is PULL
    assert [choice.mode for choice in choices[16:]].count(PUSH) <= 184 / 16


def test_a_push_that_hides_the_copy_is_taken() -> None:
    ways = HandoverWays()
    choices = list(_choices(ways, (1.0, 0.1), (1.0, 0.01)))
    assert ways.mode is PUSH
    assert choices[16][:2] == (PUSH, HandoverReason.CHEAPER)
    assert [choice.mode for choice in choices[16:]].count(PULL) <= 184 / 16


def test_it_follows_what_changes() -> None:
    ways = HandoverWays()
    list(_choices(ways, (1.0, 0.1), (1.0, 0.01)))
    list(_choices(ways, (1.0, 0.1), (1.5, 0.01), 40))
    assert ways.mode is PULL


@pytest.mark.parametrize(
    ("pull", "push", "way"),
    [(1.0, 0.9911, PULL), (1.0, 0.9885, PUSH), (0.02, 0.0189, PULL), (0.02, 0.0187, PUSH)],
)
def test_a_way_must_be_cheaper_by_a_hundredth_and_a_millisecond(
    pull: float, push: float, way: HandoverMode
) -> None:
    ways = HandoverWays()
    list(_choices(ways, (pull, 0.0), (push, 0.0), 30))
    assert ways.mode is way


def _noisy(ways: HandoverWays, pull: float, push: float, noise: float, count: int = 16) -> HandoverMode:
    """So many hand-overs of each way, in turns above and below what they take. Returns the way after them."""
    for number in range(count):
        off = noise if number % 2 else -noise
        ways.learn(_measured(PULL, pull + off, 0.0))
        ways.learn(_measured(PUSH, push + off, 0.0))
    ways.choose(1000, 1000)
    return ways.mode


def test_what_noise_may_have_made_does_not_change_the_way() -> None:
    assert _noisy(HandoverWays(), 1.0, 0.9, 0.001) is PUSH
    assert _noisy(HandoverWays(), 1.0, 0.9, 0.4) is PULL
    assert _noisy(HandoverWays(), 1.0, 0.5, 0.4) is PUSH
    assert _noisy(HandoverWays(), 1.0, 0.9, 0.08, 4) is PULL
    assert _noisy(HandoverWays(), 1.0, 0.9, 0.08, 40) is PUSH


def test_a_way_that_is_kept_in_doubt_is_not_called_the_cheaper_one() -> None:
    ways = HandoverWays()
    _noisy(ways, 1.0, 0.9, 0.4)
    assert ways.choose(1000, 1000)[:2] == (PULL, HandoverReason.UNSURE)
    alike = HandoverWays()
    _noisy(alike, 1.0, 1.0, 0.0)  # to the last bit
    assert alike.choose(1000, 1000)[:2] == (PULL, HandoverReason.CHEAPER)


def test_noise_that_has_passed_is_forgotten() -> None:
    ways = HandoverWays()
    assert _noisy(ways, 1.0, 0.9, 0.9, 8) is PULL
    assert _noisy(ways, 1.0, 0.9, 0.0, 150) is PUSH


def test_the_first_measured_push_is_not_trusted_yet() -> None:
    ways = HandoverWays()
    for _ in range(3):
        ways.learn(_measured(PUSH, 0.1, 0.0))
        ways.learn(_measured(PULL, 1.0, 0.1))
    assert ways.choose(1000, 1000).mode is PULL
    ways.learn(_measured(PUSH, 0.1, 0.0))
    assert ways.choose(1000, 1000).mode is PULL
    ways.learn(_measured(PULL, 1.0, 0.1))
    assert ways.choose(1000, 1000).mode is PUSH


def test_what_is_cached_is_not_computed_and_is_handed_over_all_the_same() -> None:
    ways = HandoverWays()
    for _ in range(4):
        ways.learn(_measured(PULL, 1.0, 0.2))
        ways.learn(_measured(PUSH, 1.0, 0.1))
    choice = ways.choose(100, 1000)
    assert choice.pull_seconds == pytest.approx(0.1 + 0.2)
    assert choice.push_seconds == pytest.approx(0.1 + 0.1)


# -- trials


def _distances(choices: list[HandoverChoice]) -> list[int]:
    trials = [number for number, choice in enumerate(choices) if choice.reason is HandoverReason.TRIAL]
    return [later - earlier for earlier, later in pairwise(trials)]


def test_a_cheap_trial_comes_every_sixteen_hand_overs() -> None:
    choices = list(_choices(HandoverWays(), (1.0, 0.0), (1.005, 0.0)))
    assert set(_distances(choices[16:])) == {16}


def test_trials_cost_a_hundredth_of_all_at_most() -> None:
    """A push takes 0.5 s more: fifty hand-overs of a second pay for it."""
    choices = list(_choices(HandoverWays(), (1.0, 0.0), (1.5, 0.0), 400))
    assert set(_distances(choices[16:])) == {50}


def test_the_first_trial_of_what_is_known_is_paid_for_too() -> None:
    ways = HandoverWays()
    for _ in range(4):
        ways.learn(_measured(PULL, 1.0, 0.0))
        ways.learn(_measured(PUSH, 1.5, 0.0))
    modes = [choice.mode for choice in _choices(ways, (1.0, 0.0), (1.5, 0.0), 60)]
    assert modes.index(PUSH) == 49


def test_trials_that_are_never_measured_become_rare() -> None:
    ways, choices = HandoverWays(), []
    for _ in range(6000):
        choices.append(ways.choose(1000, 1000))
        if choices[-1].mode is PULL:
            ways.learn(_measured(PULL, 1.0, 0.1))
    assert _distances(choices) == [8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 1024]


def test_a_measured_trial_makes_the_next_one_come_sooner_again() -> None:
    ways = HandoverWays()
    for _ in range(100):
        ways.choose(1000, 1000)
    for _ in range(2):
        ways.learn(_measured(PUSH, 1.0, 0.1))
    choices = list(_choices(ways, (1.0, 0.1), (1.0, 0.1), 8))
    assert [choice.mode for choice in choices].count(PUSH) == 2


# -- kinds of pairs


def test_pairs_of_a_kind_learn_together_by_length(member: MakeMember) -> None:
    costs, decode = HandoverCosts(), member("decode-0")
    for name in ("prefill-0", "prefill-1"):
        for _ in range(2):
            costs.learn(member(name), decode, _measured(PULL, 1.0, 0.2))
            costs.learn(member(name), decode, _measured(PUSH, 1.0, 0.1))

    def choose(tokens: int) -> HandoverChoice:
        return costs.choose(AUTO, member("prefill-2"), member("decode-1"), tokens, tokens)

    assert choose(1000)[:2] == (PUSH, HandoverReason.CHEAPER)
    assert choose(600)[:2] == (PUSH, HandoverReason.CHEAPER)
    assert choose(1024)[:2] == (PULL, HandoverReason.UNKNOWN)


def test_models_and_transports_are_kept_apart(member: MakeMember) -> None:
    costs, prefill, decode = HandoverCosts(), member("prefill-0"), member("decode-0")
    for _ in range(4):
        costs.learn(prefill, _linked(decode, "nixl"), _measured(PULL, 1.0, 0.2))
        costs.learn(prefill, _linked(decode, "nixl"), _measured(PUSH, 1.0, 0.1))
    other = member("decode-0")
    other.spec = replace(other.spec, model="other")
    assert costs.choose(AUTO, prefill, _linked(decode, "nixl"), 999, 999).mode is PUSH
    for unknown in (decode, _linked(decode, "tcp"), _linked(other, "nixl")):
        assert costs.choose(AUTO, prefill, unknown, 999, 999).reason is HandoverReason.UNKNOWN
