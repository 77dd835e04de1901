"""What became of one request."""

from array import array
from dataclasses import dataclass, field

from llmserve.loadgen.answer import Answer, Failure


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Times are seconds from the start of the run. planned_at: time at which it should have been sent, from
    which latency counts. prompt_tokens: the endpoint's count, else the wanted number. first_at, last_at:
    times of its tokens; both are planned_at when none came."""

    conversation: int
    turn: int
    kind: str
    tenant: str
    planned_at: float
    sent_at: float
    first_at: float
    last_at: float
    ended_at: float
    wanted_prompt_tokens: int
    wanted_output_tokens: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    failure: Failure | None = None

    @property
    def served(self) -> bool:
        return self.failure is None

    @property
    def has_tokens(self) -> bool:
        return self.last_at > self.planned_at

    @property
    def ttft(self) -> float:
        return self.first_at - self.planned_at

    @property
    def e2e(self) -> float:
        """Seconds to the last token."""
        return self.last_at - self.planned_at

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None with fewer than two."""
        return (self.last_at - self.first_at) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Sending:
    """A request without an answer yet: everything else that its record will hold."""

    conversation: int
    turn: int
    kind: str
    tenant: str
    planned_at: float
    prompt_tokens: int
    output_tokens: int

    def record(self, answer: Answer, sent_at: float, ended_at: float) -> LoadRecord:
        return LoadRecord(
            conversation=self.conversation,
            turn=self.turn,
            kind=self.kind,
            tenant=self.tenant,
            planned_at=self.planned_at,
            sent_at=sent_at,
            first_at=self.planned_at if answer.first_at is None else answer.first_at,
            last_at=self.planned_at if answer.last_at is None else answer.last_at,
            ended_at=ended_at,
            wanted_prompt_tokens=self.prompt_tokens,
            wanted_output_tokens=self.output_tokens,
            prompt_tokens=self.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            cached_tokens=answer.cached_tokens or 0,
            gaps=answer.gaps,
            failure=answer.failure,
        )
