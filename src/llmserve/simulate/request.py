"""What became of a request of a trace."""

from dataclasses import dataclass, field

from llmserve.traces.request import TracedRequest


@dataclass(slots=True, eq=False)
class Record:
    """Times are seconds from the start; None: it did not come to that. refusal: the error's name, empty
    for a request that was served. gap: the mean between its tokens, 0 with fewer than two."""

    request: TracedRequest
    placed_at: float | None = None
    first_at: float | None = None
    ended_at: float | None = None
    output_tokens: int = 0
    cached_tokens: int = 0
    refusal: str = field(default="")

    @property
    def served(self) -> bool:
        return self.ended_at is not None and not self.refusal

    @property
    def queue_seconds(self) -> float:
        return (self.placed_at or 0.0) - self.request.arrived_at

    @property
    def first_token_seconds(self) -> float:
        return (self.first_at or 0.0) - self.request.arrived_at

    @property
    def total_seconds(self) -> float:
        return (self.ended_at or 0.0) - self.request.arrived_at

    @property
    def gap_seconds(self) -> float:
        gaps = self.output_tokens - 1
        return ((self.ended_at or 0.0) - (self.first_at or 0.0)) / gaps if gaps > 0 else 0.0
