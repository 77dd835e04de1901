"""When drafts are switched off and on, step by step."""

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


def test_drafts_that_lose_are_off_after_one_probe() -> None:
    """16 steps with, then a probe without: the step in which it begins and 8 that are measured."""
    engine = _engine(0.8).run(17 + 9 + 100)
    assert engine.phases() == [(True, 16), (False, 110)]
    (gain,) = engine.switch.gains()
    assert gain == BatchGain(1, False, gain.gain, 126)
    assert gain.gain == pytest.approx(0.8)


def test_probes_become_rare_while_they_confirm_that_drafts_lose() -> None:
    engine = _engine(0.8).run(4000)
    with_drafts = [steps for proposed, steps in engine.phases() if proposed]
    between = [steps for proposed, steps in engine.phases() if not proposed]
    assert with_drafts == [16, 9, 9, 9, 9, 9]
    assert between[:5] == [9 + 128, 256, 512, 1024, 1024]


def test_drafts_that_win_stay_on_and_are_probed_rarely() -> None:
    engine = _engine(1.3).run(2000)
    assert engine.phases()[:6] == [(True, 16), (False, 9), (True, 128), (False, 9), (True, 256), (False, 9)]
    (gain,) = engine.switch.gains()
    assert gain.drafts
    assert gain.gain == pytest.approx(1.3)


@pytest.mark.parametrize(("gain", "on"), [(0.99, False), (1.01, True), (1.04, True)])
def test_what_neither_wins_nor_loses_stays_on(gain: float, on: bool) -> None:
    assert (_engine(gain).run(100).switch.drafts(1) == K) is on


def test_what_exactly_neither_wins_nor_loses_stays_on() -> None:
    """The first step is not measured, so after nine both ways have the same sums."""
    assert _engine(1.0, SwitchRules(first_probe=9)).run(19).switch.drafts(1) == K


@pytest.mark.parametrize(("gain", "on"), [(1.04, False), (1.06, True)])
def test_what_wins_too_little_stays_off(gain: float, on: bool) -> None:
    now = [0.8]
    engine = _engine(lambda batch: now[0]).run(100)
    now[0] = gain
    engine.run(200)
    assert (engine.switch.drafts(1) == K) is on


def test_another_text_switches_drafts_off_without_waiting_for_the_next_probe() -> None:
    """They won, and the next probe would be 128 steps away."""
    now = [1.5]
    engine = _engine(lambda batch: now[0]).run(16 + 9 + 20)
    now[0] = 0.5
    engine.run(60)
    assert engine.switch.drafts(1) == 0
    assert len(engine.phases()) == 4, "one probe, and then it was sure"


def test_a_probe_that_is_doubted_follows_the_last_one_no_sooner_than_the_first() -> None:
    """The speeds that are known speak against the verdict each time, and a probe against them."""
    now = [1.5]
    engine = _engine(lambda batch: now[0]).run(25)
    now[0] = 0.5
    engine.run(16)
    assert engine.phases()[-1] == (True, 16)
    engine.run(1)
    assert engine.phases()[-1] == (False, 1)


def test_drafts_are_switched_on_again_when_they_win() -> None:
    now = [0.8]
    engine = _engine(lambda batch: now[0]).run(100)
    now[0] = 1.5
    engine.run(25 + 128 + 9 - 100)
    assert engine.switch.drafts(1) == K
    engine.run(127)
    assert engine.phases()[-1] == (True, 9 + 127), "the next probe is not sooner than after any change"
    assert engine.run(2).phases()[-1] == (False, 1)


def test_each_class_has_its_own_verdict() -> None:
    engine = _engine(lambda batch: 1.4 if batch < 4 else 0.7).run(60, 2).run(60, 6)
    assert (engine.switch.drafts(2), engine.switch.drafts(6)) == (K, 0)
    assert [(one.batch, one.drafts, one.steps) for one in engine.switch.gains()] == [
        (2, True, 60),
        (6, False, 60),
    ]


def test_a_new_class_begins_like_the_nearest_that_is_judged() -> None:
    engine = _engine(lambda batch: 1.4 if batch < 4 else 0.7).run(60, 2).run(60, 6).run(1, 5)
    assert (engine.switch.drafts(1), engine.switch.drafts(3), engine.switch.drafts(7)) == (K, K, 0)
    assert engine.switch.drafts(5) == 0


def test_a_class_without_a_verdict_is_no_example() -> None:
    engine = _engine(0.7).run(1, 5).run(60, 12)
    assert (engine.switch.drafts(5), engine.switch.drafts(12), engine.switch.drafts(6)) == (K, 0, 0)


def test_short_steps_are_measured_as_well() -> None:
    switch = DraftSwitch(K)
    for _ in range(100):
        proposed = switch.drafts(1) > 0
        switch.ended(1, proposed=proposed, tokens=1, seconds=0.002 if proposed else 0.001)
    assert switch.drafts(1) == 0


def test_steps_of_prompts_are_not_measured_and_end_a_probe() -> None:
    """Then it goes on as before: 16 steps, and 32 of a probe that finds nothing out."""
    engine = _engine(0.5).run(200, measured=False)
    assert engine.phases()[:4] == [(True, 16), (False, 32), (True, 16), (False, 32)]
    assert [one.gain for one in engine.switch.gains()] == [0.0]


def test_a_paused_machine_does_not_count_as_slow_drafts() -> None:
    """One step of a thousand seconds counts as three: 8 tokens in 10 seconds are not less than 1 a second."""
    switch = DraftSwitch(K)
    for step in range(16):
        switch.ended(1, proposed=True, tokens=2, seconds=1000.0 if step == 7 else 1.0)
    assert switch.drafts(1) == 0, "a probe has begun"
    for _ in range(9):
        switch.ended(1, proposed=False, tokens=1, seconds=1.0)
    assert switch.drafts(1) == K
    (gain,) = switch.gains()
    assert gain.gain == pytest.approx(2 * 15 / 17, rel=0.05)


def test_old_steps_are_forgotten() -> None:
    """After 32 of them an old step counts a third."""
    rules = SwitchRules(first_probe=64)
    switch = DraftSwitch(K, rules)
    for step in range(65):
        switch.ended(1, proposed=True, tokens=2 if step < 33 else 1, seconds=1.0)
    for _ in range(9):
        switch.ended(1, proposed=False, tokens=1, seconds=1.0)
    (gain,) = switch.gains()
    old = (31 / 32) ** 32
    assert gain.gain == pytest.approx(1 + old * (1 - old) / (1 - old * old), rel=0.01)


def test_the_step_after_a_switch_tells_nothing() -> None:
    """It verifies what was proposed before, or proposes what nothing was verified for."""
    switch = DraftSwitch(K)
    switch.ended(1, proposed=True, tokens=1, seconds=1.0)
    for _ in range(15):
        switch.ended(1, proposed=True, tokens=4, seconds=2.0)
    switch.ended(1, proposed=False, tokens=99, seconds=1.0)
    for _ in range(8):
        switch.ended(1, proposed=False, tokens=1, seconds=1.0)
    (gain,) = switch.gains()
    assert gain.gain == pytest.approx(2.0)


def test_engines_whose_steps_take_no_time_keep_their_drafts() -> None:
    switch = DraftSwitch(K)
    for _ in range(100):
        switch.ended(1, proposed=switch.drafts(1) > 0, tokens=1, seconds=0.0)
    assert [(one.drafts, one.gain) for one in switch.gains()] == [(True, 0.0)]


def test_an_empty_step_asks_and_tells_nothing() -> None:
    switch = DraftSwitch(K)
    assert switch.drafts(0) == 0
    switch.ended(0, proposed=False, tokens=0, seconds=0.1)
    assert list(switch.gains()) == []


@pytest.mark.parametrize("noise", [1.0, 1.4])
def test_losing_drafts_cost_little(noise: float) -> None:
    """Drafts that take a third of the speed, in 2,000 steps: 3% at most, also where steps vary."""
    engine = _engine(0.66)
    seconds = 0.0
    for step in range(2000):
        verifies = bool(engine.proposed) and engine.proposed[-1]
        took = (1 / 0.66 if verifies else 1.0) * (noise if step * 7 % 5 < 2 else 1.0)
        proposes = engine.switch.drafts(1) > 0
        engine.switch.ended(1, proposed=proposes, tokens=1, seconds=took)
        engine.proposed.append(proposes)
        seconds += took
    plain = sum(noise if step * 7 % 5 < 2 else 1.0 for step in range(2000))
    assert plain / seconds > 0.97
