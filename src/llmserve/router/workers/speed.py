"""A straight line through what was measured lately: seconds = fixed + slope * amount. Pure.

Least squares with exponential forgetting. What the line cannot know yet comes from where it started:
an anchor at amount 0 stays, so that equal amounts do not leave the split between fixed and slope open.


How fast engines are: measured by the router, from placement to first token and from there to the end.

Each worker has lines of its own, which start from those of its model; a model's start from defaults
and learn from all its workers. So a new worker is taken to be like its peers until it shows otherwise.
"""

from dataclasses import dataclass, field

_MEMORY = 32.0  # measurements after which an old one counts a third
_ANCHOR_WEIGHT = 0.5
_FIRST_WEIGHT = 1.0
# One measurement moves the line no further than this factor: a paused machine is not a slow engine.
_MOST_OFF = 4.0
_TRUSTED_AFTER = 8


class LineFit:
    """fixed and slope are never negative, so more never takes less."""

    __slots__ = ("_anchor", "_n", "_x", "_xx", "_xy", "_y", "fixed", "samples", "slope")

    def __init__(self, fixed: float, slope: float, typical: float) -> None:
        """Where it starts: right for amount 0, and, until it has learnt, for the amount `typical`."""
        self.fixed, self.slope, self.samples = fixed, slope, 0
        self._anchor = fixed
        self._n, self._x, self._xx = _FIRST_WEIGHT, _FIRST_WEIGHT * typical, _FIRST_WEIGHT * typical**2
        self._y = _FIRST_WEIGHT * (fixed + slope * typical)
        self._xy = self._y * typical

    def __repr__(self) -> str:
        return f"<LineFit {self.fixed:.4g} s + {self.slope:.4g} s each, {self.samples} samples>"

    def started_from_this(self, typical: float) -> "LineFit":
        """Another that knows as much, and soon more."""
        return LineFit(self.fixed, self.slope, typical)

    def seconds(self, amount: float) -> float:
        return self.fixed + self.slope * amount

    def learn(self, amount: float, seconds: float) -> None:
        """A measurement. amount and seconds are at least 0."""
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
        spread = n * self._xx - self._x * self._x
        steepest = y / self._x if self._x else 0.0  # steeper, and fixed would be negative
        slope = (n * self._xy - self._x * y) / spread if spread > 0 else 0.0
        self.slope = min(max(slope, 0.0), steepest)
        self.fixed = max(0.0, (y - self.slope * self._x) / n)


# Where nothing is known yet: some GPU, some model. A few requests correct it.
_PROMPT_SECONDS, _TOKEN_SECONDS, _TYPICAL_PROMPT_TOKENS = 0.005, 1 / 5000, 1000.0
_STEP_SECONDS, _SEQUENCE_SECONDS, _TYPICAL_RUNNING = 0.02, 0.0002, 16.0
# A shorter answer measures the start of decoding rather than its steps.
_FEWEST_TOKENS = 8


def _prefill_line() -> LineFit:
    return LineFit(_PROMPT_SECONDS, _TOKEN_SECONDS, _TYPICAL_PROMPT_TOKENS)


def _decode_line() -> LineFit:
    return LineFit(_STEP_SECONDS, _SEQUENCE_SECONDS, _TYPICAL_RUNNING)


@dataclass(slots=True)
class LatencyModel:
    """prefill: seconds of a prompt by the tokens it computes; its fixed part is what any leg costs.
    decode: seconds of a token by the requests that decode at the same time."""

    prefill: LineFit = field(default_factory=_prefill_line)
    decode: LineFit = field(default_factory=_decode_line)

    def like(self) -> "LatencyModel":
        return LatencyModel(
            self.prefill.started_from_this(_TYPICAL_PROMPT_TOKENS),
            self.decode.started_from_this(_TYPICAL_RUNNING),
        )


class LatencyModels:
    """Of all models. A worker's own pace is kept with its incarnation (Seats.pace)."""

    def __init__(self) -> None:
        self._models: dict[str, LatencyModel] = {}

    def of_model(self, model: str) -> LatencyModel:
        latency = self._models.get(model)
        if latency is None:
            latency = self._models[model] = LatencyModel()
        return latency

    def prefilled(self, own: LatencyModel, model: str, computed_tokens: int, seconds: float) -> None:
        """A worker was busy with a prompt for so long."""
        for latency in (own, self.of_model(model)):
            latency.prefill.learn(computed_tokens, max(0.0, seconds))

    def decoded(self, own: LatencyModel, model: str, running: float, tokens: int, seconds: float) -> None:
        """One of so many requests got so many tokens after its first in this time."""
        if tokens < _FEWEST_TOKENS:
            return
        for latency in (own, self.of_model(model)):
            latency.decode.learn(running, max(0.0, seconds) / tokens)
