"""Learns from placed requests how fast their workers are (pace.py). Pure."""

from llmserve.router.pace import Pace, Paces
from llmserve.router.session import Holding
from llmserve.router.worker import Seats


class Learner:
    def __init__(self, paces: Paces) -> None:
        self._paces = paces

    def first_token(self, holding: Holding, now: float) -> None:
        """Gives the prefill seat back, and takes the time. Called once for each holding."""
        computing, work = holding.computing, holding.work
        busy = holding.first_token(now)
        if work.predicted:
            own = self._own(computing, work.model)
            self._paces.prefilled(own, work.model, work.computed_tokens, busy - work.predicted.parts.load)

    def ended(self, holding: Holding, output_tokens: int, now: float) -> None:
        """Gives everything back, and takes the time since the first token. output_tokens: of a choice."""
        work, decode = holding.work, holding.decode
        if work.predicted and work.first_token_at is not None:
            running = (work.running_at_first_token + decode.placed_requests) / 2
            seconds = now - work.first_token_at
            own = self._own(decode, work.model)
            self._paces.decoded(own, work.model, running, output_tokens - 1, seconds)
        holding.give_back(now)

    def _own(self, seats: Seats, model: str) -> Pace:
        if seats.pace is None:
            seats.pace = self._paces.of_model(model).like()
        return seats.pace
