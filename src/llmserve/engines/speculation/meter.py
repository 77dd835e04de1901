"""Times the steps of an engine, and tells the switch of proposals what each has brought. Pure.

vLLM plans a step and learns its outcome in turn, or plans the next one before it has the outcome of this one.
Either way the outcomes come in order, and as long as there is work, a step takes the time between two of
them: with all that the engine does beside the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llmserve.core.clock import Clock
from llmserve.engines.speculation.switch import ProposalSwitch

_REPORT_SECONDS = 0.5

GainRow = list[Any]
"""The fields of a BatchGain, as they travel between two processes."""


class PlannedStep(Protocol):
    """The part of vLLM's SchedulerOutput that counts here. num_scheduled_tokens: of each request.
    scheduled_spec_decode_tokens: the proposals that it verifies, of each request that has any.
    num_spec_tokens_to_schedule: proposals that it makes for each request."""

    @property
    def num_scheduled_tokens(self) -> Mapping[str, int]: ...

    @property
    def total_num_scheduled_tokens(self) -> int: ...

    @property
    def scheduled_spec_decode_tokens(self) -> Mapping[str, Sequence[int]]: ...

    @property
    def num_spec_tokens_to_schedule(self) -> int: ...


class StepMeter:
    """One engine's. `began` is called when a step is planned, `ended` with its outcome, and `rests` when
    nothing is left to do then."""

    def __init__(self, switch: ProposalSwitch, clock: Clock) -> None:
        self.switch = switch
        self._clock = clock
        self._since = self._reported_at = clock.now()
        self._resting = True

    def began(self) -> None:
        if self._resting:
            self._since, self._resting = self._clock.now(), False

    def ended(self, planned: PlannedStep, sampled: Sequence[Sequence[int]]) -> None:
        """sampled: the tokens that each request got."""
        now = self._clock.now()
        seconds, self._since = now - self._since, now
        self.switch.ended(
            len(planned.num_scheduled_tokens),
            proposed=planned.num_spec_tokens_to_schedule > 0,
            tokens=sum(map(len, sampled)),
            seconds=None if _computes_prompts(planned) else seconds,
        )

    def rests(self) -> None:
        self._resting = True

    def report(self) -> list[GainRow] | None:
        """What the switch knows, after each half a second, and when nothing is left to do; else None."""
        now = self._clock.now()
        if now - self._reported_at < _REPORT_SECONDS and not self._resting:
            return None
        self._reported_at = now
        return [[one.batch, one.proposes, one.gain, one.steps] for one in self.switch.gains()]


def _computes_prompts(planned: PlannedStep) -> bool:
    """Whether any request computes more than its last token and the proposals after it."""
    verified = sum(map(len, planned.scheduled_spec_decode_tokens.values()))
    return planned.total_num_scheduled_tokens > len(planned.num_scheduled_tokens) + verified
