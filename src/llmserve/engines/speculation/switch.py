"""Whether the steps of an engine propose tokens: as long as that gives more tokens per second. Pure.

What proposals cost and bring depends on the number of requests in the step, on the text and on the machine,
and only measuring tells: fixed rules by batch size lost throughput elsewhere (vllm#49548). So each class of
batch sizes has a verdict, which holds for all requests of the engine. Most steps run as it says. Now and then
a trial runs short blocks of steps both ways and compares these with each other only, since an older speed may
be that of another text or another load. After each pair of blocks it asks whether the difference is larger
than chance explains: a clear one ends the trial with the first pair. What steps against the verdict lose is
paid from a budget that grows with the steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.core.stats import BatchGain


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """on_above, off_below: proposals are switched on when they give at least this many times the tokens per
    second, and off when they give less.
    block_steps, pairs: measured steps of a block of a trial; its pairs of blocks at most.
    clearly: the trial ends earlier when the gain is this many standard errors from the limit. With this one,
    the boundary of Pocock for twelve looks, 5% of the trials of a gain that lies on the limit end earlier.
    newest: the part of the newest trial in the gain. The others share the rest in the same way, so that
    phases of a text in turn are judged together.
    doubt: each way counts as if one step more had differed from the mean by this part of it. So a few steps
    that are alike by chance prove little.
    most_off: a step counts as no more than this many times the mean, because a paused machine is not slow.
    longest_gap: steps of the engine between two of a class after which its trial is given up.
    share, savings: the budget for what steps against the verdict lose, in steps: what each step adds to it,
    and the most that it holds. A trial begins when it is full."""

    on_above: float = 1.05
    off_below: float = 1.0
    block_steps: int = 4
    pairs: int = 12
    clearly: float = 2.588
    newest: float = 0.6
    doubt: float = 0.5
    most_off: float = 3.0
    longest_gap: int = 256
    share: float = 0.01
    savings: float = 40.0


def class_of(batch: int) -> int:
    """The smallest batch size of the class: up to 7 each size is one, and beyond, sizes that differ by less
    than a quarter are alike. batch: at least 1."""
    shift = max(0, batch.bit_length() - 3)
    return batch >> shift << shift


class _MeasuredSteps:
    """Measured steps that ran one way. tokens, seconds: their sums."""

    def __init__(self, rules: SwitchRules) -> None:
        self._rules = rules
        self._steps: list[tuple[int, float]] = []
        self.tokens = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, tokens: int, seconds: float) -> None:
        if self._steps:
            seconds = min(seconds, self._rules.most_off * self.seconds / len(self))
        self._steps.append((tokens, seconds))
        self.tokens += tokens
        self.seconds += seconds

    def variance(self) -> float:
        """Returns the variance of the logarithm of tokens per second."""
        parts = ((tokens / self.tokens, seconds / self.seconds) for tokens, seconds in self._steps)
        return sum((one - other) ** 2 for one, other in parts) + (self._rules.doubt / len(self)) ** 2


class _Trial:
    """Blocks of steps: as the verdict says, two against it, two as it says, and so on. proposes: how steps
    run now. measured: with proposals and without. pairs: blocks of both ways that have ended."""

    def __init__(self, rules: SwitchRules, proposes: bool) -> None:
        self._block_steps = rules.block_steps
        self.proposes = proposes
        self.measured = {True: _MeasuredSteps(rules), False: _MeasuredSteps(rules)}
        self.pairs = 0

    def ends_a_pair(self) -> bool:
        """Says after each step whether a pair of blocks has ended with it. Begins the next block."""
        wanted = (self.pairs + 1) * self._block_steps
        if len(self.measured[self.proposes]) < wanted:
            return False
        if len(self.measured[not self.proposes]) < wanted:
            self.proposes = not self.proposes
            return False
        self.pairs += 1
        return True

    def tells(self) -> bool:
        return all(one.tokens and one.seconds for one in self.measured.values())

    def log_gain(self) -> float:
        """The logarithm of tokens per second with proposals, as a multiple of those without."""
        proposing, plain = self.measured[True], self.measured[False]
        return math.log(proposing.tokens * plain.seconds / (plain.tokens * proposing.seconds))

    def error(self) -> float:
        """The standard error of that logarithm."""
        return math.sqrt(sum(one.variance() for one in self.measured.values()))

    def loss(self, verdict: bool, tokens: int, seconds: float) -> float:
        """What a step against the verdict took longer than its tokens take by it, in steps by it."""
        usual = self.measured[verdict]
        if not (usual.tokens and usual.seconds):
            return 0.0
        return len(usual) * max(0.0, seconds / usual.seconds - tokens / usual.tokens)


class _BatchClass:
    """proposes: the verdict. gain: over the trials that came to one; 0: there was none."""

    def __init__(self, rules: SwitchRules, proposes: bool) -> None:
        self._rules = rules
        self.proposes = proposes
        self.gain = 0.0
        self.steps = 0
        self._trial: _Trial | None = None
        self._seen = 0  # the engine's step that was the last one of this class
        self._budget = rules.savings

    @property
    def proposes_now(self) -> bool:
        return self._trial.proposes if self._trial else self.proposes

    def ended(self, at: int, proposed: bool, tokens: int, seconds: float | None) -> None:
        """at: the step's number among those of the engine. seconds: None if it tells nothing."""
        gap, self._seen = at - self._seen, at
        self.steps += 1
        self._budget = min(self._budget + self._rules.share, self._rules.savings)
        if gap > self._rules.longest_gap:
            self._trial = None
        if self._trial is not None:
            self._follow(self._trial, proposed, tokens, seconds)
        elif self._budget >= self._rules.savings:
            self._trial = _Trial(self._rules, self.proposes)

    def _follow(self, trial: _Trial, proposed: bool, tokens: int, seconds: float | None) -> None:
        """A step against the verdict that tells nothing is lost, so that a trial ends in which none can."""
        if seconds is not None:
            trial.measured[proposed].add(tokens, seconds)
        if proposed is not self.proposes:
            self._budget -= 1.0 if seconds is None else trial.loss(self.proposes, tokens, seconds)
        if trial.ends_a_pair():
            self._look(trial)
        elif self._budget < 0:
            self._trial = None

    def _look(self, trial: _Trial) -> None:
        """Comes to a verdict if the gain is clearly above or below the limit, or after the last pair."""
        if not trial.tells():
            self._trial = None
            return
        newest = self._rules.newest if self.gain else 1.0
        gain = newest * trial.log_gain() + ((1 - newest) * math.log(self.gain) if self.gain else 0.0)
        above = gain - math.log(self._rules.off_below if self.proposes else self._rules.on_above)
        if abs(above) < self._rules.clearly * newest * trial.error() and trial.pairs < self._rules.pairs:
            return
        self.gain, self.proposes, self._trial = math.exp(gain), above >= 0, None


class ProposalSwitch:
    """Decides for one engine. `proposals` is asked for each step, and `ended` is called after it."""

    def __init__(self, tokens: int, rules: SwitchRules | None = None) -> None:
        """tokens: proposals that each request gets in a step while they pay."""
        self._tokens, self._rules = tokens, rules or SwitchRules()
        self._classes: dict[int, _BatchClass] = {}
        self._proposed: bool | None = None  # by the step that ended last
        self._steps = 0

    def proposals(self, batch: int) -> int:
        """The tokens that a step of this many requests proposes to each of them, for the next step."""
        return self._tokens if batch and self._of(batch).proposes_now else 0

    def ended(self, batch: int, *, proposed: bool, tokens: int, seconds: float | None) -> None:
        """A step has ended. proposed: it proposed tokens. tokens: generated in it, of all requests. seconds:
        it took; None: it is not to be measured, as one that computes prompts.

        A step verifies what the one before it proposed, so only one that proposes like that one tells what
        proposals cost and bring."""
        if not batch:
            return
        self._steps += 1
        steady, self._proposed = proposed is self._proposed, proposed
        self._of(batch).ended(self._steps, proposed, tokens, seconds if steady else None)

    def gains(self) -> Iterator[BatchGain]:
        """Yields each class of batch sizes that there were, in order."""
        for batch, its_class in sorted(self._classes.items()):
            yield BatchGain(batch, its_class.proposes, its_class.gain, its_class.steps)

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
        return True if nearest is None else self._classes[nearest].proposes
