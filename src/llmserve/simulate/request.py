"""A request of a trace, and what became of it."""

from dataclasses import dataclass, field

from llmserve.core.ids import DEFAULT_TENANT, TenantId


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """arrived_at: seconds from the start. max_output_tokens: as the client says; 0: it does not say.

    prefix_names: of each run of run_tokens tokens of the prompt, a name of it and all before it: equal
    names are equal prefixes. Tokens beyond the names are no other request's."""

    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    tenant: TenantId = DEFAULT_TENANT
    max_output_tokens: int = 0
    prefix_names: tuple[int, ...] = ()
    run_tokens: int = 512


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
