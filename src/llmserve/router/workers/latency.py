"""How long an engine takes: straight lines through what was measured lately. Pure.

seconds = fixed + slope * amount, by least squares with exponential forgetting. What the line cannot know yet
comes from where it started: an anchor at amount 0 stays, so that equal amounts do not leave the split
between fixed and slope open.
"""

from dataclasses import dataclass, field

_MEMORY = 32.0  # measurements after which an old one counts a third
_ANCHOR_WEIGHT = 0.5
_FIRST_WEIGHT = 1.0
# One measurement moves the line no further than this factor: a paused machine is not a slow engine.
_MOST_OFF = 4.0
_TRUSTED_AFTER = 8


class LineFit:
    """The fixed part and the slope are never negative, so more never takes less."""

    __slots__ = ("_anchor", "_n", "_x", "_xx", "_xy", "_y", "fixed", "samples", "slope")

    def __init__(self, fixed: float, slope: float, typical: float, *, weight: float = _FIRST_WEIGHT) -> None:
        """The line starts as fixed + slope * amount. Until it has learnt, it holds best at the amount
        `typical`, which is more than 0. weight: what this counts, in measurements; with 0 the first
        measurement has to be of an amount above 0."""
        self.fixed, self.slope, self.samples = fixed, slope, 0
        self._anchor = fixed
        self._n, self._x, self._xx = weight, weight * typical, weight * typical**2
        self._y = weight * (fixed + slope * typical)
        self._xy = self._y * typical

    def __repr__(self) -> str:
        return f"<LineFit {self.fixed:.4g} s + {self.slope:.4g} s each, {self.samples} samples>"

    def seconds(self, amount: float) -> float:
        return self.fixed + self.slope * amount

    def learn(self, amount: float, seconds: float) -> None:
        """Adds a measurement. amount and seconds are at least 0."""
        seconds = self._plausible(amount, seconds)
        keep = 1.0 - 1.0 / _MEMORY
        self._n = self._n * keep + 1.0
        self._x = self._x * keep + amount
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + amount * amount
        self._xy = self._xy * keep + amount * seconds
        self.samples += 1
        self._solve()

    def _plausible(self, amount: float, seconds: float) -> float:
        if self.samples < _TRUSTED_AFTER:
            return seconds
        expected = self.seconds(amount)
        return min(max(seconds, expected / _MOST_OFF), expected * _MOST_OFF)

    def _solve(self) -> None:
        n, y = self._n + _ANCHOR_WEIGHT, self._y + _ANCHOR_WEIGHT * self._anchor
        spread = n * self._xx - self._x * self._x  # more than 0, because the anchor is at amount 0
        slope = (n * self._xy - self._x * y) / spread
        steepest = y / self._x  # steeper, and fixed would be negative
        self.slope = min(max(slope, 0.0), steepest)
        self.fixed = max(0.0, (y - self.slope * self._x) / n)


# Where nothing is known yet: some GPU, some model. A few requests correct it.
_PROMPT_SECONDS, _TOKEN_SECONDS, _TYPICAL_PROMPT_TOKENS = 0.005, 1 / 5000, 1000.0
_STEP_SECONDS, _SEQUENCE_SECONDS, _TYPICAL_RUNNING = 0.02, 0.0002, 16.0


def _prefill_line() -> LineFit:
    return LineFit(_PROMPT_SECONDS, _TOKEN_SECONDS, _TYPICAL_PROMPT_TOKENS)


def _decode_line() -> LineFit:
    return LineFit(_STEP_SECONDS, _SEQUENCE_SECONDS, _TYPICAL_RUNNING)


@dataclass(slots=True)
class LatencyModel:
    """prefill: seconds of a prompt by the tokens to compute; its fixed part is the cost of any leg. decode:
    seconds of one token by the requests that decode at the same time."""

    prefill: LineFit = field(default_factory=_prefill_line)
    decode: LineFit = field(default_factory=_decode_line)

    def copy(self) -> "LatencyModel":
        """A model that predicts the same and learns on its own."""
        prefill, decode = self.prefill, self.decode
        return LatencyModel(
            LineFit(prefill.fixed, prefill.slope, _TYPICAL_PROMPT_TOKENS),
            LineFit(decode.fixed, decode.slope, _TYPICAL_RUNNING),
        )
