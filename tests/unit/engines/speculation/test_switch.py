"""When proposals are switched off and on, step by step."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from llmserve.core.stats import BatchGain
from llmserve.engines.speculation.switch import ProposalSwitch, SwitchRules, class_of

K = 3


@dataclass
class Engine:
    """An engine whose step takes a second without proposals. gain: tokens per second with them, as a multiple
    of those without, by batch size. proposed: whether each step proposed tokens."""

    switch: ProposalSwitch
    gain: Callable[[int], float]
    proposed: list[bool] = field(default_factory=list)

    def run(self, steps: int, batch: int = 1, *, measured: bool = True) -> "Engine":
        for _ in range(steps):
            proposes = self.switch.proposals(batch) > 0
            verifies = bool(self.proposed) and self.proposed[-1]
            tokens = 100 * batch  # so many that gains need no fractions
            seconds = (1 / self.gain(batch) if verifies else 1.0) if measured else None
            self.switch.ended(batch, proposed=proposes, tokens=tokens, seconds=seconds)
            self.proposed.append(proposes)
        return self

    def until(self, verdict: bool) -> int:
        """Runs until that is the verdict. Returns the steps that it took."""
        for steps in range(1, 20_000):
            self.run(1)
            if next(self.switch.gains()).proposes is verdict:
                return steps
        raise AssertionError("the verdict stays")

    def phases(self) -> list[tuple[bool, int]]:
        """Runs of steps that went the same way: which way, and how many."""
        return list(_runs(self.proposed))


@dataclass
class Text:
    """A request whose step takes a second, and `cost` more with proposals. acceptance: the probability that
    one is right if those before it are. noise: standard deviation of a step's time."""

    acceptance: float
    cost: float = 0.1
    noise: float = 0.1
    seed: int = 0
    switch: ProposalSwitch = field(default_factory=lambda: ProposalSwitch(K))
    proposed: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    verdict: bool = True
    changes: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    @property
    def gain(self) -> float:
        """Tokens per second with proposals, as a multiple of those without, which are one a second."""
        return sum(self.acceptance**n for n in range(K + 1)) / (1 + self.cost)

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds

    def run(self, steps: int, *, pause: float = 1.0) -> "Text":
        for _ in range(steps):
            verifies, proposes = bool(self.proposed) and self.proposed[-1], self.switch.proposals(1) > 0
            tokens = self._accepted() if verifies else 1
            took = (1 + self.cost * proposes) * max(0.1, self._draw.gauss(1, self.noise)) * pause
            self.switch.ended(1, proposed=proposes, tokens=tokens, seconds=took)
            self.proposed.append(proposes)
            self.seconds, self.tokens = self.seconds + took, self.tokens + tokens
            ((before, self.verdict),) = [(self.verdict, one.proposes) for one in self.switch.gains()]
            self.changes += self.verdict is not before
        return self

    def _accepted(self) -> int:
        return next((n for n in range(1, K + 1) if self._draw.random() >= self.acceptance), K + 1)


def _runs(steps: list[bool]) -> Iterator[tuple[bool, int]]:
    begins = [i for i, one in enumerate(steps) if not i or one is not steps[i - 1]]
    for first, end in zip(begins, [*begins[1:], len(steps)], strict=True):
        yield steps[first], end - first


def _engine(gain: float | Callable[[int], float], rules: SwitchRules | None = None) -> Engine:
    by_batch = gain if callable(gain) else lambda batch: gain
    return Engine(ProposalSwitch(K, rules), by_batch)


def _only(switch: ProposalSwitch) -> BatchGain:
    (gain,) = switch.gains()
    return gain


@pytest.mark.parametrize(
    ("first", "sizes"),
    [(1, [1]), (2, [2]), (7, [7]), (8, [8, 9]), (14, [14, 15]), (16, [16, 17, 18, 19]), (56, [56, 63])],
)
def test_batch_sizes_that_differ_little_are_one_class(first: int, sizes: list[int]) -> None:
    assert {class_of(size) for size in sizes} == {first}
    assert class_of(first - 1) != first
    assert class_of(sizes[-1] + 1) != first


# -- one trial


def test_proposals_that_lose_clearly_are_off_after_two_blocks() -> None:
    """Four measured steps each; before them comes the step of the engine that is its first, and one after the
    switch."""
    engine = _engine(0.54)
    assert engine.until(False) == 10
    assert engine.run(100).phases() == [(True, 5), (False, 105)]
    found = _only(engine.switch)
    assert found == BatchGain(1, False, found.gain, 110)
    assert found.gain == pytest.approx(0.54)


@pytest.mark.parametrize(("gain", "pairs"), [(0.6, 1), (0.7, 2), (0.8, 3), (0.9, 5), (0.97, 12), (0.999, 12)])
def test_the_less_proposals_lose_the_more_blocks_it_takes(gain: float, pairs: int) -> None:
    """Two blocks that follow each other run the same way, so that a pair costs one switch."""
    engine = _engine(gain)
    assert engine.until(False) == 1 + 9 * pairs
    lengths = [steps for _, steps in engine.phases()]
    assert lengths == [5, *[9] * (pairs - 1), 4 + 1 if pairs == 1 else 5]


@pytest.mark.parametrize(("gain", "pairs"), [(2.0, 1), (1.2, 3), (1.02, 12), (1.0, 12)])
def test_proposals_that_win_or_do_not_lose_stay_on(gain: float, pairs: int) -> None:
    engine = _engine(gain).run(9 * pairs)
    assert _only(engine.switch).gain == 0.0
    assert _only(engine.run(1).switch).gain == pytest.approx(gain)
    assert engine.proposed[-1 - 4] is engine.proposed[-1]
    assert engine.switch.proposals(1) == K


def test_steps_that_vary_prove_less() -> None:
    """The same mean: 0.6 times the tokens per second."""
    pairs = []
    for spread in (0.0, 0.5):
        switch, steps = ProposalSwitch(K), 0
        while not _only_gain(switch):
            proposes = switch.proposals(1) > 0
            pause = 1 + spread * (1 if steps % 2 else -1)
            switch.ended(1, proposed=proposes, tokens=1, seconds=pause * (1 / 0.6 if proposes else 1.0))
            steps += 1
        pairs.append(steps // 9)
    assert pairs[0] == 1
    assert pairs[1] > 2


def _only_gain(switch: ProposalSwitch) -> float:
    return next((one.gain for one in switch.gains()), 0.0)


def test_a_trial_compares_nothing_with_older_speeds() -> None:
    """Proposals won by far in the two trials before it, whose gains count 0.16 and 0.24 in its own."""
    now = [4.0]
    engine = _engine(lambda batch: now[0]).run(700)
    before = _only(engine.switch).gain
    now[0] = 0.5
    while _only(engine.run(1).switch).gain == before:
        pass
    assert _only(engine.switch).gain == pytest.approx(0.5**0.6 * 4.0**0.4)


def test_the_step_after_a_switch_tells_nothing() -> None:
    """It verifies what was proposed before, or proposes what nothing was verified for."""
    switch = ProposalSwitch(K)
    before = True
    for _ in range(30):
        proposes = switch.proposals(1) > 0
        tokens = 99 if proposes is not before else 4 if proposes else 1
        switch.ended(1, proposed=proposes, tokens=tokens, seconds=2.0 if proposes else 1.0)
        before = proposes
    assert _only(switch).gain == pytest.approx(2.0)


def test_a_paused_machine_does_not_count_as_slow_proposals() -> None:
    """A step of a thousand seconds counts as three."""
    text = Text(1.0, noise=0.0)
    for step in range(40):
        text.run(1, pause=1000.0 if step == 3 else 1.0)
    assert text.verdict
    assert _only(text.switch).gain > 1.5


def test_engines_whose_steps_take_no_time_keep_their_proposals() -> None:
    switch = ProposalSwitch(K)
    for _ in range(100):
        switch.ended(1, proposed=switch.proposals(1) > 0, tokens=1, seconds=0.0)
    assert _only(switch) == BatchGain(1, True, 0.0, 100)


def test_nothing_is_tried_while_every_step_computes_prompts() -> None:
    engine = _engine(0.5).run(200, measured=False)
    assert engine.phases() == [(True, 200)]
    assert _only(engine.switch).gain == 0.0


def test_a_trial_in_which_prompts_come_ends_with_its_budget() -> None:
    """Which holds 40 steps. It is full again after so many hundreds."""
    engine = _engine(0.5).run(6).run(300, measured=False)
    assert engine.phases() == [(True, 5), (False, 41), (True, 260)]


@pytest.mark.parametrize(("steps", "pairs"), [(255, 0), (256, 1)])
def test_a_trial_that_its_batch_size_left_for_long_is_given_up(steps: int, pairs: int) -> None:
    """It had all but one step of its pair of blocks."""
    engine = _engine(0.5).run(9, 1).run(steps, 4).run(1, 1)
    gain = next(engine.switch.gains())
    assert (gain.batch, gain.gain > 0) == (1, not pairs)


def test_an_empty_step_asks_and_tells_nothing() -> None:
    switch = ProposalSwitch(K)
    assert switch.proposals(0) == 0
    switch.ended(0, proposed=False, tokens=0, seconds=0.1)
    assert list(switch.gains()) == []


# -- from trial to trial


@pytest.mark.parametrize(("gain", "lost"), [(0.5, 1.0), (2.0, 1.0), (0.2, 4.0)])
def test_the_next_trial_comes_when_a_hundredth_of_the_steps_has_paid_for_the_last(
    gain: float, lost: float
) -> None:
    """By what four steps against the verdict took longer than it, and one that was not measured."""
    engine = _engine(gain).run(int(800 + 500 * lost))
    between = [steps for way, steps in engine.phases()[1:-1] if way is (gain > 1) and steps > 5]
    assert between[-1] == pytest.approx(100 * (1 + 4 * lost), abs=10)


@pytest.mark.parametrize(("gain", "comes_back"), [(1.04, False), (1.07, True)])
def test_it_comes_back_on_only_where_it_wins_enough(gain: float, comes_back: bool) -> None:
    now = [0.9]
    engine = _engine(lambda batch: now[0])
    engine.until(False)
    now[0] = gain
    engine.run(3000)
    assert _only(engine.switch).proposes is comes_back


def test_what_wins_exactly_enough_comes_back_on() -> None:
    engine = _engine(0.5, SwitchRules(on_above=2.0, newest=1.0))
    engine.until(False)
    engine.gain = lambda batch: 2.0
    engine.until(True)


def test_each_class_has_its_own_verdict() -> None:
    engine = _engine(lambda batch: 1.8 if batch < 4 else 0.5).run(20, 2).run(20, 6)
    assert (engine.switch.proposals(2), engine.switch.proposals(6)) == (K, 0)
    assert [(one.batch, one.proposes, one.steps) for one in engine.switch.gains()] == [
        (2, True, 20),
        (6, False, 20),
    ]


def test_a_verdict_holds_for_later_requests_of_the_same_load() -> None:
    """Other batch sizes were in between."""
    engine = _engine(0.5).run(20, 1).run(500, 12)
    first = len(engine.proposed)
    assert engine.run(80, 1).proposed[first:] == [False] * 80


def test_a_new_class_begins_like_the_nearest_that_is_judged() -> None:
    engine = _engine(lambda batch: 1.8 if batch < 4 else 0.5).run(20, 2).run(20, 6)
    assert (engine.switch.proposals(1), engine.switch.proposals(3), engine.switch.proposals(7)) == (K, K, 0)
    assert engine.switch.proposals(5) == 0


def test_a_class_without_a_verdict_is_no_example() -> None:
    engine = _engine(0.5).run(1, 5).run(20, 12)
    assert [engine.switch.proposals(size) for size in (5, 12, 6)] == [K, 0, 0]


# -- what it comes to, by chance


SEEDS = range(3)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(
    ("acceptance", "cost"),
    [
        pytest.param(0.01, 0.1, id="random text, n-grams"),
        pytest.param(0.01, 0.3, id="random text, a small draft"),
        pytest.param(0.3, 4.0, id="a draft as large as the model"),
    ],
)
def test_proposals_that_lose_cost_little(acceptance: float, cost: float, noise: float) -> None:
    """At least 0.95 of the speed without them, with the first trial, and 0.97 from then."""
    for seed in SEEDS:
        text = Text(acceptance, cost, noise, seed).run(1500)
        assert not text.verdict
        assert text.changes == 1, "it does not flap"
        assert text.speed >= 0.95
        text.seconds, text.tokens = 0.0, 0
        assert text.run(1000).speed >= 0.97


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("acceptance", "cost"), [(0.8, 0.1), (0.6, 0.5), (0.95, 2.0)])
def test_proposals_that_win_are_not_switched_off(acceptance: float, cost: float, noise: float) -> None:
    """Nearly all of what they bring is kept."""
    for seed in SEEDS:
        text = Text(acceptance, cost, noise, seed).run(1500)
        assert (text.verdict, text.changes) == (True, 0)
        assert text.speed >= 0.96 * text.gain


@pytest.mark.parametrize("gain", [0.9, 0.97, 1.0, 1.05, 1.15])
def test_what_hardly_matters_costs_hardly_anything(gain: float) -> None:
    """Whatever the verdicts are, which chance decides there."""
    for seed in SEEDS:
        cost = sum(0.3**n for n in range(K + 1)) / gain - 1
        text = Text(0.3, cost, 0.2, seed).run(1500)
        assert text.gain == pytest.approx(gain)
        assert text.speed >= 0.94 * max(1.0, gain)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_with_phases_is_judged_as_a_whole(seed: int) -> None:
    """It copies for some fifty steps, and then for as many it does not. Without proposals for one phase, half
    of the next one would pass before the next trial."""
    text = Text(0.9, seed=seed)
    for step in range(2000):
        text.acceptance = 0.0 if step // 50 % 2 else 0.9
        text.run(1)
    assert text.speed >= 1.7


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_text_is_followed(seed: int) -> None:
    """Sooner where more is lost."""
    text = Text(0.8, cost=0.5, seed=seed).run(1000)
    text.acceptance, text.seconds, text.tokens = 0.01, 0.0, 0
    assert not text.run(2000).verdict
    assert text.speed > 0.8
    text.acceptance = 0.8
    assert text.run(1500).verdict


@pytest.mark.parametrize("gain", [0.3, 0.99, 1.0, 1.04, 3.0])
def test_what_trials_lose_is_bounded_whatever_happens(gain: float) -> None:
    """A hundredth of the steps, 40 more, and the step that exceeds it; the gain changes as often as it can,
    and prompts come."""
    draw = random.Random(7)
    engine = Engine(ProposalSwitch(K), lambda batch: gain * draw.choice([0.5, 1.0, 2.0]))
    against = 0
    for step in range(1, 2001):
        verdict = next((one.proposes for one in engine.switch.gains()), True)
        against += (engine.switch.proposals(1) > 0) is not verdict and step % 97 <= 20
        engine.run(1, measured=step % 97 > 20)
        assert against <= 41 + 0.01 * step


@pytest.mark.parametrize(("gain", "limit"), [(1.0, 0.05), (1.05, 0.02), (1.2, 0.0)])
def test_few_trials_end_early_with_the_wrong_verdict(gain: float, limit: float) -> None:
    """Of the first ones of 100 engines: none of those that have 12 pairs count."""
    wrong = 0
    for seed in range(100):
        draw, engine = random.Random(seed), _engine(1.0)
        engine.gain = lambda batch, draw=draw: gain * math.exp(draw.gauss(0, 0.2))  # type: ignore[misc]
        engine.run(1 + 9 * 11)
        wrong += not _only(engine.switch).proposes
    assert wrong / 100 <= limit
