"""Whether an engine's steps propose drafts: as long as that gives more tokens per second. Pure.

What drafts cost and bring depends on the number of requests in the step, on the text and on the machine, and
only measuring tells: fixed rules by batch size lost throughput elsewhere (vllm#49548). So each class of batch
sizes has a verdict of its own. Most of its steps run as the verdict says. Now and then a trial runs short
blocks of steps both ways in turn and compares these with each other only, since an older speed may be that of
another text or another load. Steps against the verdict are paid from a budget that grows with the steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.core.stats import BatchGain


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """on_above, off_below: drafts are switched on when they give at least this many times the tokens per
    second, and off when they give less.
    block_steps, rounds: measured steps of a block of a trial; its blocks against the verdict, unless the
    first ones confirm it.
    clearly: a verdict is confirmed early where the limit that would change it is this many times away.
    longest_gap: steps of the engine between two of a class after which its trial is given up.
    first_wait, shortest_wait, longest_wait: steps before the first trial of a class; after one, at least and
    at most.
    probe_share, saved_probes: steps against the verdict that a class may run for each of its steps; that it
    has at first, and may save up.
    noticed_fall: tokens per step below this part of those in the last trial tell that the text changed.
    memory_steps: steps after which an old one counts a third for that.
    most_off: a step counts as no more than this many times the mean, because a paused machine is not slow."""

    on_above: float = 1.05
    off_below: float = 1.0
    block_steps: int = 8
    rounds: int = 6
    clearly: float = 1.15
    longest_gap: int = 256
    first_wait: int = 8
    shortest_wait: int = 128
    longest_wait: int = 1024
    probe_share: float = 0.015
    saved_probes: float = 162.0
    noticed_fall: float = 0.75
    memory_steps: float = 32.0
    most_off: float = 3.0


def class_of(batch: int) -> int:
    """The smallest batch size of the class: up to 7 each size is one, and beyond, sizes that differ by less
    than a quarter are alike. batch: at least 1."""
    shift = max(0, batch.bit_length() - 3)
    return batch >> shift << shift


class _Speed:
    """Tokens and seconds of steps. requests: in all of these steps."""

    __slots__ = ("_most_off", "requests", "seconds", "steps", "tokens")

    def __init__(self, most_off: float) -> None:
        self._most_off = most_off
        self.steps = self.requests = self.tokens = 0
        self.seconds = 0.0

    def add(self, requests: int, tokens: int, seconds: float) -> None:
        if self.steps:
            seconds = min(seconds, self._most_off * self.seconds / self.steps)
        self.steps += 1
        self.requests += requests
        self.tokens += tokens
        self.seconds += seconds

    @property
    def tokens_per_request(self) -> float:
        return self.tokens / self.requests


class _Trial:
    """Blocks of steps: one as the verdict says, one against it, one as it says again, and so on.
    speeds: with drafts and without. rounds: blocks against the verdict that have ended. probes: whether one
    is running."""

    def __init__(self, rules: SwitchRules) -> None:
        self.speeds = {True: _Speed(rules.most_off), False: _Speed(rules.most_off)}
        self.rounds = 0
        self.probes = False

    @property
    def gain(self) -> float | None:
        """Tokens per second with drafts, as a multiple of those without; None: nothing tells it."""
        drafted, plain = self.speeds[True], self.speeds[False]
        scale = plain.tokens * drafted.seconds
        return drafted.tokens * plain.seconds / scale if scale else None


class _BatchClass:
    """drafts: the verdict. gain: in the last trial; 0: there was none."""

    def __init__(self, rules: SwitchRules, drafts: bool) -> None:
        self._rules = rules
        self.drafts = drafts
        self.gain = 0.0
        self.steps = 0
        self._trial: _Trial | None = None
        self._seen = 0  # the engine's step that was the last one of this class
        self._since = 0  # steps since the last trial ended
        self._wait = rules.first_wait
        self._budget = rules.saved_probes
        # Tokens of a request in a step with drafts: in the last trial, and now.
        self._usual = self._recent = 0.0

    @property
    def drafts_now(self) -> bool:
        return self.drafts is not (self._trial is not None and self._trial.probes)

    def measured(self, drafted: bool, requests: int, tokens: int, seconds: float) -> None:
        """A step has ended that ran one way, as the step before it did."""
        if drafted:
            self._recent += (tokens / requests - self._recent) / self._rules.memory_steps
        if self._trial is not None:
            self._trial.speeds[drafted].add(requests, tokens, seconds)

    def passed(self, at: int) -> None:
        """A step has ended, whether it was measured or not. at: its number among the engine's steps."""
        gap, self._seen = at - self._seen, at
        self.steps += 1
        self._budget = min(self._budget + self._rules.probe_share, self._rules.saved_probes)
        if self._trial is None:
            self._since += 1
            if self._is_due():
                self._trial = _Trial(self._rules)
            return
        follow = self._follow_probe if self._trial.probes else self._follow_verdict
        follow(self._trial)
        if gap > self._rules.longest_gap:
            self._end_trial()

    def _is_due(self) -> bool:
        """Whether it is time for a trial, and the budget has all its rounds. The first step of a round is not
        measured."""
        text_changed = self.drafts and self._recent < self._rules.noticed_fall * self._usual
        affordable = self._budget >= self._rules.rounds * (self._rules.block_steps + 1)
        return affordable and (text_changed or self._since >= self._wait)

    def _follow_probe(self, trial: _Trial) -> None:
        """Ends a block against the verdict that has measured enough. The trial ends when the block cannot, as
        when every step computes prompts, before it has used up the budget."""
        self._budget -= 1
        if trial.speeds[not self.drafts].steps >= self._rules.block_steps * (trial.rounds + 1):
            trial.rounds, trial.probes = trial.rounds + 1, False
        elif self._budget < 1:
            self._end_trial()

    def _follow_verdict(self, trial: _Trial) -> None:
        """After a block as the verdict says, decides whether one against it follows."""
        if trial.speeds[self.drafts].steps < self._rules.block_steps * (trial.rounds + 1):
            return
        if not trial.rounds:
            trial.probes = True
            return
        gain = trial.gain
        if gain is None:
            self._end_trial()
        elif trial.rounds < self._rules.rounds and not self._confirms(gain):
            trial.probes = True
        else:
            self._judge(trial, gain)

    def _speaks_against(self, gain: float) -> bool:
        return gain < self._rules.off_below if self.drafts else gain >= self._rules.on_above

    def _confirms(self, gain: float) -> bool:
        rules = self._rules
        if self.drafts:
            return gain >= rules.off_below * rules.clearly
        return gain * rules.clearly <= rules.on_above

    def _judge(self, trial: _Trial, gain: float) -> None:
        self.gain = gain
        self._usual = self._recent = trial.speeds[True].tokens_per_request
        if self._speaks_against(gain):
            self.drafts, self._wait = not self.drafts, self._rules.shortest_wait
        else:
            longer = min(2 * self._wait, self._rules.longest_wait)
            self._wait = max(longer, self._rules.shortest_wait)
        self._end_trial()

    def _end_trial(self) -> None:
        self._trial, self._since = None, 0


class DraftSwitch:
    """Decides for one engine. `drafts` is asked for each step, and `ended` is called after it."""

    def __init__(self, tokens: int, rules: SwitchRules | None = None) -> None:
        """tokens: drafts that each request gets in a step while they pay."""
        self._tokens, self._rules = tokens, rules or SwitchRules()
        self._classes: dict[int, _BatchClass] = {}
        self._proposed: bool | None = None  # by the step that ended last
        self._steps = 0

    def drafts(self, batch: int) -> int:
        """The drafts that a step of this many requests proposes to each of them, for the next step."""
        return self._tokens if batch and self._of(batch).drafts_now else 0

    def ended(self, batch: int, *, proposed: bool, tokens: int, seconds: float | None) -> None:
        """A step has ended. proposed: it proposed drafts. tokens: generated in it, of all requests. seconds:
        it took; None: it is not to be measured, as one that computes prompts.

        A step verifies what the one before it proposed, so only one that proposes like that one tells what
        drafts cost and bring."""
        if not batch:
            return
        self._steps += 1
        steady, self._proposed = proposed is self._proposed, proposed
        its_class = self._of(batch)
        if steady and seconds is not None:
            its_class.measured(proposed, batch, tokens, seconds)
        its_class.passed(self._steps)

    def gains(self) -> Iterator[BatchGain]:
        """Yields each class of batch sizes that there were, in order."""
        for batch, its_class in sorted(self._classes.items()):
            yield BatchGain(batch, its_class.drafts, its_class.gain, its_class.steps)

    def _of(self, batch: int) -> _BatchClass:
        name = class_of(batch)
        found = self._classes.get(name)
        if found is None:
            found = self._classes[name] = _BatchClass(self._rules, self._expected(name))
        return found

    def _expected(self, name: int) -> bool:
        """A new class begins like the nearest one with a verdict."""
        judged = (size for size, its_class in self._classes.items() if its_class.gain)
        nearest = min(judged, key=lambda size: abs(size - name), default=None)
        return True if nearest is None else self._classes[nearest].drafts
