"""How fast engines are: measured by the router, from placement to first token and from there to the end.

Each worker has lines of its own, which start from those of its model; a model's start from defaults
and learn from all its workers. So a new worker is taken to be like its peers until it shows otherwise.
"""

from dataclasses import dataclass, field

from llmserve.router.line_fit import LineFit

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
class Pace:
    """prefill: seconds of a prompt by the tokens it computes; its fixed part is what any leg costs.
    decode: seconds of a token by the requests that decode at the same time."""

    prefill: LineFit = field(default_factory=_prefill_line)
    decode: LineFit = field(default_factory=_decode_line)

    def like(self) -> "Pace":
        return Pace(
            self.prefill.started_from_this(_TYPICAL_PROMPT_TOKENS),
            self.decode.started_from_this(_TYPICAL_RUNNING),
        )


class Paces:
    """Of all models. A worker's own pace is kept with its incarnation (Seats.pace)."""

    def __init__(self) -> None:
        self._models: dict[str, Pace] = {}

    def of_model(self, model: str) -> Pace:
        pace = self._models.get(model)
        if pace is None:
            pace = self._models[model] = Pace()
        return pace

    def prefilled(self, own: Pace, model: str, computed_tokens: int, seconds: float) -> None:
        """A worker was busy with a prompt for so long."""
        for pace in (own, self.of_model(model)):
            pace.prefill.learn(computed_tokens, max(0.0, seconds))

    def decoded(self, own: Pace, model: str, running: float, tokens: int, seconds: float) -> None:
        """One of so many requests got so many tokens after its first in this time."""
        if tokens < _FEWEST_TOKENS:
            return
        for pace in (own, self.of_model(model)):
            pace.decode.learn(running, max(0.0, seconds) / tokens)
