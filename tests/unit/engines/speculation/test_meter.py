"""What an engine's steps took, and what of it the switch hears."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.engines.speculation.meter import StepMeter
from llmserve.engines.speculation.switch import ProposalSwitch


@dataclass
class Planned:
    num_scheduled_tokens: dict[str, int]
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    num_spec_tokens_to_schedule: int = 3

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


@dataclass
class Heard(ProposalSwitch):
    """A switch that only listens."""

    steps: list[tuple[int, bool, int, float | None]] = field(default_factory=list)

    def ended(self, batch: int, *, proposed: bool, tokens: int, seconds: float | None) -> None:
        self.steps.append((batch, proposed, tokens, seconds))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(7.0)


@pytest.fixture
def switch() -> Heard:
    return Heard()


@pytest.fixture
def meter(switch: Heard, clock: VirtualClock) -> StepMeter:
    return StepMeter(switch, clock)


def _step(meter: StepMeter, clock: VirtualClock, seconds: float, planned: Planned | None = None) -> None:
    meter.began()
    clock.advance(seconds)
    meter.ended(planned or Planned({"a": 1}), [[5]])


def test_a_step_takes_the_time_from_the_outcome_before_it(
    meter: StepMeter, switch: Heard, clock: VirtualClock
) -> None:
    """The time between them counts, too; before the first one there was nothing to do."""
    clock.advance(100)
    _step(meter, clock, 0.5)
    clock.advance(0.25)
    _step(meter, clock, 0.5)
    assert [seconds for *_, seconds in switch.steps] == [0.5, 0.75]


def test_a_rest_counts_for_no_step(meter: StepMeter, switch: Heard, clock: VirtualClock) -> None:
    _step(meter, clock, 0.5)
    meter.rests()
    clock.advance(100)
    _step(meter, clock, 0.5)
    assert [seconds for *_, seconds in switch.steps] == [0.5, 0.5]


def test_steps_that_are_planned_ahead_take_the_time_between_outcomes(
    meter: StepMeter, switch: Heard, clock: VirtualClock
) -> None:
    meter.began()
    for _ in range(3):
        meter.began()
        clock.advance(0.5)
        meter.ended(Planned({"a": 1}), [[5]])
    assert [seconds for *_, seconds in switch.steps] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("scheduled", "verified", "seconds"),
    [
        ({"a": 1, "b": 1}, {}, 1.0),
        ({"a": 4, "b": 1}, {"a": [7, 7, 7]}, 1.0),
        ({"a": 4, "b": 2}, {"a": [7, 7, 7]}, None),
        ({"a": 1, "b": 100}, {}, None),
    ],
)
def test_steps_that_compute_prompts_are_not_measured(
    meter: StepMeter,
    switch: Heard,
    clock: VirtualClock,
    scheduled: dict[str, int],
    verified: dict[str, list[int]],
    seconds: float | None,
) -> None:
    _step(meter, clock, 1.0, Planned(scheduled, verified))
    assert switch.steps == [(2, True, 1, seconds)]


@pytest.mark.parametrize(
    ("proposed", "sampled", "heard"),
    [(3, [[1, 2], [3], []], (1, True, 3, 0.0)), (1, [[1]], (1, True, 1, 0.0)), (0, [], (1, False, 0, 0.0))],
)
def test_what_a_step_proposed_and_gave(
    meter: StepMeter,
    switch: Heard,
    proposed: int,
    sampled: Sequence[Sequence[int]],
    heard: tuple[int, bool, int, float],
) -> None:
    meter.began()
    meter.ended(Planned({"a": 1}, num_spec_tokens_to_schedule=proposed), sampled)
    assert switch.steps == [heard]


def test_reports_are_few_while_it_runs_and_there_is_one_at_the_end(clock: VirtualClock) -> None:
    meter = StepMeter(ProposalSwitch(3), clock)
    _step(meter, clock, 0.25)
    assert meter.report() is None
    _step(meter, clock, 0.25)
    assert meter.report() == [[1, True, 0.0, 2]]
    _step(meter, clock, 0.25)
    assert meter.report() is None
    meter.rests()
    assert meter.report() == [[1, True, 0.0, 3]]
