"""Whether an engine's steps propose drafts: as long as that gives more tokens per second. Pure.

What drafts cost and bring depends on the number of requests in the step, on the text and on the machine, and
only measuring tells: fixed rules by batch size lost throughput elsewhere (vllm#49548). So each class of batch
sizes has a verdict of its own. Most of its steps run as the verdict says. Now and then a few run the other
way (a probe), and then both speeds, measured one right after the other, are compared. A probe comes early
when the speeds that are known speak against the verdict, and ever more rarely while probes confirm it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.core.stats import BatchGain


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """on_above, off_below: drafts are switched on when they give at least this many times the tokens per
    second, and off when they give less. probe_steps: measured steps of a probe. longest_probe: steps after
    which it ends without them. first_probe, shortest_wait, longest_wait: steps before the first probe of a
    class, after one that changed the verdict, and at most. memory_steps: steps after which an old one counts
    a third. most_off: a step counts as no more than this many times the mean, because a paused machine is not
    a slow one."""

    on_above: float = 1.05
    off_below: float = 1.0
    probe_steps: int = 8
    longest_probe: int = 32
    first_probe: int = 16
    shortest_wait: int = 128
    longest_wait: int = 1024
    memory_steps: float = 32.0
    most_off: float = 3.0


def class_of(batch: int) -> int:
    """The smallest batch size of the class: up to 7 each size is one, and beyond, sizes that differ by less
    than a quarter are alike. batch: at least 1."""
    shift = max(0, batch.bit_length() - 3)
    return batch >> shift << shift


class _Speed:
    """Tokens and seconds of steps; old ones are forgotten."""

    __slots__ = ("_rules", "seconds", "steps", "tokens", "weight")

    def __init__(self, rules: SwitchRules) -> None:
        self._rules = rules
        self.tokens = self.seconds = self.weight = 0.0
        self.steps = 0

    def add(self, tokens: int, seconds: float) -> None:
        if self.steps:
            seconds = min(seconds, self._rules.most_off * self.seconds / self.weight)
        keep = 1.0 - 1.0 / self._rules.memory_steps
        self.tokens = self.tokens * keep + tokens
        self.seconds = self.seconds * keep + seconds
        self.weight = self.weight * keep + 1.0
        self.steps += 1

    @property
    def known(self) -> bool:
        return self.steps >= self._rules.probe_steps and self.seconds > 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class _BatchClass:
    """drafts: the verdict."""

    def __init__(self, rules: SwitchRules, drafts: bool) -> None:
        self._rules = rules
        self.drafts = drafts
        self.steps = 0
        self.judged = False
        self._speeds = {True: _Speed(rules), False: _Speed(rules)}
        self._probe: _Speed | None = None
        self._since = 0  # steps since the last probe ended, or since this one began
        self._wait = rules.first_probe

    @property
    def drafts_now(self) -> bool:
        return self.drafts if self._probe is None else not self.drafts

    @property
    def gain(self) -> float | None:
        """Tokens per second with drafts, as a multiple of those without; None: not measured yet."""
        with_drafts, without = self._speeds[True], self._speeds[False]
        if not (with_drafts.known and without.known):
            return None
        return with_drafts.tokens_per_second / without.tokens_per_second

    def measured(self, drafted: bool, tokens: int, seconds: float) -> None:
        """A step has ended that ran one way, as the step before it did."""
        if drafted is self.drafts:
            self._speeds[drafted].add(tokens, seconds)
        elif self._probe is not None:
            self._probe.add(tokens, seconds)

    def passed(self) -> None:
        """A step has ended, whether it was measured or not."""
        self.steps += 1
        self._since += 1
        if self._probe is not None:
            self._follow(self._probe)
        elif self._since >= self._due():
            self._probe, self._since = _Speed(self._rules), 0

    def _due(self) -> int:
        return min(self._wait, self._rules.first_probe) if self._is_doubtful() else self._wait

    def _is_doubtful(self) -> bool:
        """Whether the speeds that are known speak against the verdict."""
        gain = self.gain
        return gain is not None and self._verdict(gain) is not self.drafts

    def _verdict(self, gain: float) -> bool:
        return gain >= (self._rules.off_below if self.drafts else self._rules.on_above)

    def _follow(self, probe: _Speed) -> None:
        """Ends a probe that has measured enough, and one that cannot, as when every step computes prompts."""
        if probe.known:
            self._speeds[not self.drafts] = probe
            self._judge()
        elif self._since < self._rules.longest_probe:
            return
        self._probe, self._since = None, 0

    def _judge(self) -> None:
        gain = self.gain
        if gain is None:
            return
        before, self.drafts, self.judged = self.drafts, self._verdict(gain), True
        confirmed = self.drafts is before
        longer = min(2 * self._wait, self._rules.longest_wait)
        self._wait = max(longer, self._rules.shortest_wait) if confirmed else self._rules.shortest_wait


class DraftSwitch:
    """Decides for one engine. `drafts` is asked for each step, and `ended` is called after it."""

    def __init__(self, tokens: int, rules: SwitchRules | None = None) -> None:
        """tokens: drafts that each request gets in a step while they pay."""
        self._tokens, self._rules = tokens, rules or SwitchRules()
        self._classes: dict[int, _BatchClass] = {}
        self._proposed: bool | None = None  # by the step that ended last

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
        steady, self._proposed = proposed is self._proposed, proposed
        its_class = self._of(batch)
        if steady and seconds is not None:
            its_class.measured(proposed, tokens, seconds)
        its_class.passed()

    def gains(self) -> Iterator[BatchGain]:
        """Yields each class of batch sizes that there were, in order."""
        for batch, its_class in sorted(self._classes.items()):
            yield BatchGain(batch, its_class.drafts, its_class.gain or 0.0, its_class.steps)

    def _of(self, batch: int) -> _BatchClass:
        name = class_of(batch)
        found = self._classes.get(name)
        if found is None:
            found = self._classes[name] = _BatchClass(self._rules, self._expected(name))
        return found

    def _expected(self, name: int) -> bool:
        """A new class begins like the nearest one with a verdict."""
        judged = (size for size, its_class in self._classes.items() if its_class.judged)
        nearest = min(judged, key=lambda size: abs(size - name), default=None)
        return True if nearest is None else self._classes[nearest].drafts
