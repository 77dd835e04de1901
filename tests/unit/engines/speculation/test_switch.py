"""When drafts are switched off and on, step by step."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from llmserve.core.stats import BatchGain
from llmserve.engines.speculation.switch import DraftSwitch, SwitchRules, class_of

K = 3


@dataclass
class Engine:
    """An engine whose step takes a second without drafts. gain: tokens per second with drafts, as a multiple
    of those without, by batch size. proposed: whether each step proposed drafts."""

    switch: DraftSwitch
    gain: Callable[[int], float]
    proposed: list[bool] = field(default_factory=list)

    def run(self, steps: int, batch: int = 1, *, measured: bool = True) -> "Engine":
        for _ in range(steps):
            proposes = self.switch.drafts(batch) > 0
            verifies = bool(self.proposed) and self.proposed[-1]
            tokens = 100 * batch  # so many that gains need no fractions
            seconds = (1 / self.gain(batch) if verifies else 1.0) if measured else None
            self.switch.ended(batch, proposed=proposes, tokens=tokens, seconds=seconds)
            self.proposed.append(proposes)
        return self

    def phases(self) -> list[tuple[bool, int]]:
        """Runs of steps that went the same way: which way, and how many."""
        return list(_runs(self.proposed))


@dataclass
class Text:
    """A request whose step takes a second, and drafts_cost more with drafts. tokens: that a step gives which
    verifies; 0: as many as are accepted, each with the probability acceptance. noise: standard deviation of
    a step's time."""

    tokens: int = 0
    acceptance: float = 0.0
    drafts_cost: float = 0.1
    noise: float = 0.0
    seed: int = 0
    switch: DraftSwitch = field(default_factory=lambda: DraftSwitch(K))
    proposed: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    tokens_made: int = 0
    verdict: bool = True
    changes: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def run(self, steps: int, *, pause: float = 1.0) -> "Text":
        for _ in range(steps):
            verifies, proposes = bool(self.proposed) and self.proposed[-1], self.switch.drafts(1) > 0
            tokens = self._accepted() if verifies else 1
            took = (1 + self.drafts_cost * proposes) * max(0.1, self._draw.gauss(1, self.noise)) * pause
            self.switch.ended(1, proposed=proposes, tokens=tokens, seconds=took)
            self.proposed.append(proposes)
            self.seconds, self.tokens_made = self.seconds + took, self.tokens_made + tokens
            ((before, self.verdict),) = [(self.verdict, one.drafts) for one in self.switch.gains()]
            self.changes += self.verdict is not before
        return self

    def _accepted(self) -> int:
        if self.tokens:
            return self.tokens
        return next((n for n in range(1, K + 1) if self._draw.random() >= self.acceptance), K + 1)


def _runs(steps: list[bool]) -> Iterator[tuple[bool, int]]:
    begins = [i for i, one in enumerate(steps) if not i or one is not steps[i - 1]]
    for first, end in zip(begins, [*begins[1:], len(steps)], strict=True):
        yield steps[first], end - first


def _engine(gain: float | Callable[[int], float], rules: SwitchRules | None = None) -> Engine:
    by_batch = gain if callable(gain) else lambda batch: gain
    return Engine(DraftSwitch(K, rules), by_batch)


@pytest.mark.parametrize(
    ("first", "sizes"),
    [(1, [1]), (2, [2]), (7, [7]), (8, [8, 9]), (14, [14, 15]), (16, [16, 17, 18, 19]), (56, [56, 63])],
)
def test_batch_sizes_that_differ_little_are_one_class(first: int, sizes: list[int]) -> None:
    assert {class_of(size) for size in sizes} == {first}
    assert class_of(first - 1) != first
    assert class_of(sizes[-1] + 1) != first


def test_drafts_that_lose_are_off_after_one_trial() -> None:
    """After 8 steps it begins with 8 measured ones as the verdict says. Then come six rounds of 8 without and
    8 with drafts, each with a step more that is not measured."""
    engine = _engine(0.8).run(16 + 6 * 18)
    assert engine.phases() == [(True, 16), *[(False, 9), (True, 9)] * 6]
    engine.run(100)
    assert engine.phases()[-1] == (False, 100)
    (gain,) = engine.switch.gains()
    assert gain == BatchGain(1, False, gain.gain, 224)
    assert gain.gain == pytest.approx(0.8)


def test_trials_become_rare_while_they_confirm_that_drafts_lose() -> None:
    """Each needs one round. Between two, the block after a probe ends one, and a block begins the next."""
    engine = _engine(0.8).run(124 + 5000)
    assert engine.phases()[13:21] == [
        (False, 128 + 8),
        (True, 9),
        (False, 9 + 256 + 8),
        (True, 9),
        (False, 9 + 512 + 8),
        (True, 9),
        (False, 9 + 1024 + 8),
        (True, 9),
    ]
    assert engine.phases()[21] == (False, 9 + 1024 + 8)


def test_drafts_that_win_stay_on_and_are_tried_rarely() -> None:
    engine = _engine(1.3).run(2000)
    assert engine.phases()[:4] == [(True, 16), (False, 9), (True, 9 + 128 + 8), (False, 9)]
    assert engine.phases()[4] == (True, 9 + 256 + 8)
    (gain,) = engine.switch.gains()
    assert gain.drafts
    assert gain.gain == pytest.approx(1.3)


@pytest.mark.parametrize(("gain", "on"), [(0.99, False), (1.01, True), (1.04, True)])
def test_what_neither_wins_nor_loses_stays_on(gain: float, on: bool) -> None:
    assert (_engine(gain).run(200).switch.drafts(1) == K) is on


def test_what_exactly_neither_wins_nor_loses_stays_on() -> None:
    assert _engine(1.0).run(1000).switch.drafts(1) == K


def test_what_wins_exactly_enough_comes_back_on() -> None:
    switch = DraftSwitch(K, SwitchRules(on_above=2.0))
    now = [0.5]
    engine = Engine(switch, lambda batch: now[0]).run(124)
    now[0] = 2.0
    assert engine.run(300).switch.drafts(1) == K


@pytest.mark.parametrize(("gain", "on"), [(1.04, False), (1.06, True)])
def test_what_wins_too_little_stays_off(gain: float, on: bool) -> None:
    now = [0.8]
    engine = _engine(lambda batch: now[0]).run(124)
    now[0] = gain
    engine.run(300)
    assert (engine.switch.drafts(1) == K) is on


def test_fewer_tokens_a_step_start_a_trial_without_waiting_for_the_next() -> None:
    """They won, and the next trial would be 128 steps away."""
    text = Text(4)
    text.run(34)
    text.tokens = 1
    text.run(14 + 8 + 6 * 18)
    assert text.switch.drafts(1) == 0


@pytest.mark.parametrize(("tokens", "steps"), [(2.9, 14), (3.1, 128)])
def test_only_a_fall_by_more_than_a_quarter_starts_a_trial(tokens: float, steps: int) -> None:
    """Of 4 tokens a step: the mean over some 32 steps gets below 3 after long, or never."""
    text = Text(400)
    text.run(34)
    text.tokens = int(100 * tokens)
    text.run(128)
    assert (text.proposed.count(False) > 9) is (steps < 128)


def test_drafts_are_switched_on_again_when_they_win() -> None:
    now = [0.8]
    engine = _engine(lambda batch: now[0]).run(124)
    now[0] = 1.5
    engine.run(128 + 8 + 6 * 18 - 1)
    assert engine.switch.drafts(1) == 0
    engine.run(1)
    assert engine.switch.drafts(1) == K
    engine.run(128 + 8 + 1)
    assert engine.phases()[-2:] == [(True, 128 + 8), (False, 1)], "no sooner than after any change"


def test_each_class_has_its_own_verdict() -> None:
    engine = _engine(lambda batch: 1.4 if batch < 4 else 0.7).run(124, 2).run(124, 6)
    assert (engine.switch.drafts(2), engine.switch.drafts(6)) == (K, 0)
    assert [(one.batch, one.drafts, one.steps) for one in engine.switch.gains()] == [
        (2, True, 124),
        (6, False, 124),
    ]


def test_a_new_class_begins_like_the_nearest_that_is_judged() -> None:
    engine = _engine(lambda batch: 1.4 if batch < 4 else 0.7).run(124, 2).run(124, 6).run(1, 5)
    assert (engine.switch.drafts(1), engine.switch.drafts(3), engine.switch.drafts(7)) == (K, K, 0)
    assert engine.switch.drafts(5) == 0


def test_a_class_without_a_verdict_is_no_example() -> None:
    engine = _engine(0.7).run(1, 5).run(124, 12)
    assert (engine.switch.drafts(5), engine.switch.drafts(12), engine.switch.drafts(6)) == (K, 0, 0)


def test_short_steps_are_measured_as_well() -> None:
    switch = DraftSwitch(K)
    for _ in range(130):
        proposed = switch.drafts(1) > 0
        switch.ended(1, proposed=proposed, tokens=1, seconds=0.002 if proposed else 0.001)
    assert switch.drafts(1) == 0


def test_nothing_is_tried_while_every_step_computes_prompts() -> None:
    engine = _engine(0.5).run(200, measured=False)
    assert engine.phases() == [(True, 200)]
    assert [one.gain for one in engine.switch.gains()] == [0.0]


def test_a_probe_in_which_prompts_come_ends_with_its_budget() -> None:
    """It has 162 steps, and earns two more by these."""
    engine = _engine(0.5).run(16).run(300, measured=False)
    assert engine.phases() == [(True, 16), (False, 164), (True, 136)]


@pytest.mark.parametrize(("steps", "drafts"), [(255, 0), (256, K)])
def test_a_trial_that_its_batch_size_left_for_long_is_given_up(steps: int, drafts: int) -> None:
    engine = _engine(0.5).run(20, 1).run(steps, 4).run(1, 1)
    assert engine.switch.drafts(1) == drafts


def test_a_paused_machine_does_not_count_as_slow_drafts() -> None:
    """One step of a thousand seconds counts as three: 32 tokens in 20 seconds are more than 1 a second."""
    text = Text(2)
    for step in range(34):
        text.run(1, pause=1000.0 if step == 12 else 1.0)
    (gain,) = text.switch.gains()
    assert gain.drafts
    assert gain.gain == pytest.approx(32 / (18 * 1.1))


def test_a_trial_compares_nothing_with_older_speeds() -> None:
    """Drafts won by far in the 8 steps before it, and lose since."""
    now = [9.0]
    engine = _engine(lambda batch: now[0]).run(8)
    now[0] = 0.9
    engine.run(116)
    (gain,) = engine.switch.gains()
    assert gain.gain == pytest.approx(0.9)
    assert not gain.drafts


def test_the_step_after_a_switch_tells_nothing() -> None:
    """It verifies what was proposed before, or proposes what nothing was verified for."""
    switch = DraftSwitch(K)
    before = True
    for _ in range(34):
        proposes = switch.drafts(1) > 0
        tokens = 99 if proposes is not before else 4 if proposes else 1
        switch.ended(1, proposed=proposes, tokens=tokens, seconds=2.0 if proposes else 1.0)
        before = proposes
    (gain,) = switch.gains()
    assert gain.gain == pytest.approx(2.0)


def test_engines_whose_steps_take_no_time_keep_their_drafts() -> None:
    switch = DraftSwitch(K)
    for _ in range(100):
        switch.ended(1, proposed=switch.drafts(1) > 0, tokens=1, seconds=0.0)
    assert [(one.drafts, one.gain) for one in switch.gains()] == [(True, 0.0)]


def test_a_trial_that_tells_nothing_is_followed_by_another() -> None:
    text = Text(1, drafts_cost=0.0)
    for _ in range(16 + 18 + 8 + 8 + 1):
        text.run(1, pause=0.0)
    assert list(_runs(text.proposed)) == [(True, 16), (False, 9), (True, 9 + 8 + 8), (False, 1)]


def test_an_empty_step_asks_and_tells_nothing() -> None:
    switch = DraftSwitch(K)
    assert switch.drafts(0) == 0
    switch.ended(0, proposed=False, tokens=0, seconds=0.1)
    assert list(switch.gains()) == []


@pytest.mark.parametrize("noise", [1.0, 1.4])
def test_losing_drafts_cost_little(noise: float) -> None:
    """Drafts that take a third of the speed, in 2,000 steps: 3% at most, also where steps vary."""
    text = Text(1, drafts_cost=0.5)
    for step in range(2000):
        text.run(1, pause=noise if step * 7 % 5 < 2 else 1.0)
    plain = sum(noise if step * 7 % 5 < 2 else 1.0 for step in range(2000))
    assert plain / text.seconds > 0.97


@pytest.mark.parametrize("gain", [0.5, 0.99, 1.0, 1.04, 2.0])
def test_probes_are_bounded_whatever_happens(gain: float) -> None:
    """In any run of steps they are 1.5% and 162; here the gain changes as often as it can."""
    draw = random.Random(7)
    engine = Engine(DraftSwitch(K), lambda batch: gain * draw.choice([0.3, 1.0, 3.0]))
    probes = 0
    for step in range(1, 6_001):
        (verdict,) = [one.drafts for one in engine.switch.gains()] or [True]
        probes += (engine.switch.drafts(1) > 0) is not verdict
        engine.run(1, measured=step % 97 > 20)
        assert probes <= 162 + 0.015 * step


SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_text_ends_without_drafts(seed: int) -> None:
    """Nearly none is accepted, proposing costs a tenth of a step, and steps vary by a fifth."""
    text = Text(acceptance=0.01, noise=0.2, seed=seed).run(500)
    assert not text.verdict
    text.run(1500)
    assert text.tokens_made / text.seconds >= 0.97
    assert text.run(6_000).changes == 1, "it does not flap"


@pytest.mark.parametrize(("gain", "rounds"), [(1.16, 1), (1.14, 6)])
def test_drafts_that_win_clearly_are_confirmed_early(gain: float, rounds: int) -> None:
    assert _engine(gain).run(124).proposed.count(False) == 9 * rounds


@pytest.mark.parametrize(("gain", "rounds"), [(0.91, 1), (0.92, 6)])
def test_drafts_that_lose_clearly_are_confirmed_early(gain: float, rounds: int) -> None:
    now = [0.5]
    engine = _engine(lambda batch: now[0]).run(124)
    now[0] = gain
    assert engine.run(128 + 116).proposed[124:].count(True) == 9 * rounds


@pytest.mark.parametrize("gain", [2.0, 0.5])
def test_what_is_exactly_clear_is_confirmed_early(gain: float) -> None:
    """By the first round of a trial, and of the second one for drafts that lose: those have six before it."""
    engine = _engine(gain, SwitchRules(clearly=2.0, on_above=1.0)).run(124 + 128 + 116)
    against = [steps for drafts, steps in engine.phases() if drafts is not (gain > 1)]
    assert against[-1] == 9
    assert len(against) == (2 if gain > 1 else 8)


def test_a_trial_needs_the_budget_of_all_its_rounds() -> None:
    """These are six of nine steps."""
    assert _engine(0.8, SwitchRules(saved_probes=54.0)).run(125).switch.drafts(1) == 0
    assert _engine(0.8, SwitchRules(saved_probes=53.9)).run(125).proposed == [True] * 125


def test_a_budget_is_used_to_its_last_step() -> None:
    rules = SwitchRules(probe_share=0.0, saved_probes=54.0)
    engine = _engine(0.8, rules).run(16).run(100, measured=False)
    assert engine.phases() == [(True, 16), (False, 54), (True, 46)]


def test_a_change_of_text_is_seen_in_the_tokens_of_each_request() -> None:
    """Four requests at a time, which get 3 tokens each and then one."""
    switch, seen = DraftSwitch(K), list[bool]()
    for step in range(34 + 30):
        proposes = switch.drafts(4) > 0
        tokens = 4 * (3 if step < 34 else 1) if seen and seen[-1] else 4
        switch.ended(4, proposed=proposes, tokens=tokens, seconds=1.0)
        seen.append(proposes)
    assert seen.count(False) > 9


@pytest.mark.parametrize("seed", SEEDS)
def test_copying_goes_on_with_drafts(seed: int) -> None:
    text = Text(acceptance=0.8, noise=0.2, seed=seed).run(2000)
    assert text.tokens_made / text.seconds >= 1.3
    assert (text.verdict, text.run(6_000).changes) == (True, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_text_is_followed(seed: int) -> None:
    """At once where drafts stop being accepted; else with the next trial: steps without tell nothing."""
    text = Text(acceptance=0.8, noise=0.2, seed=seed).run(1000)
    text.acceptance = 0.01
    assert not text.run(500).verdict
    text.acceptance = 0.8
    assert text.run(1024 + 16 + 116).verdict
