"""What the scheduler of a simulated engine orders for one step, and how long the step takes."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from llmserve.engines.sim.link import KvSource
from llmserve.engines.sim.sequence import BlockSequence

S = TypeVar("S", bound=BlockSequence)


@dataclass(frozen=True, slots=True)
class PullOrder(Generic[S]):
    """The order to copy these tokens of the ticket's prompt into local blocks. The first block is that of the
    first token."""

    sequence: S
    ticket: KvSource
    tokens: range
    local_block_ids: tuple[int, ...]


@dataclass(slots=True)
class Step(Generic[S]):
    """work: the tokens to compute for each sequence. pulls: transfers to start now. releases: tickets that
    are not needed. A step without work takes no time."""

    work: list[tuple[S, int]] = field(default_factory=list)
    pulls: list[PullOrder[S]] = field(default_factory=list)
    releases: list[KvSource] = field(default_factory=list)

    @property
    def prefill_tokens(self) -> int:
        return sum(count for sequence, count in self.work if not _decodes(sequence, count))

    @property
    def decode_sequences(self) -> int:
        return sum(1 for sequence, count in self.work if _decodes(sequence, count))


@dataclass(slots=True)
class Committed(Generic[S]):
    """complete: sequences whose next token can be generated. filled: the sequence and the index of each block
    that became full. advanced: each sequence with the number of its computed tokens."""

    complete: list[S] = field(default_factory=list)
    filled: list[tuple[S, int]] = field(default_factory=list)
    advanced: list[tuple[S, int]] = field(default_factory=list)


def _decodes(sequence: BlockSequence, count: int) -> bool:
    """The last token of a fully loaded prompt costs as much as a decoded token."""
    return count == 1 and sequence.computed_tokens > 0


@dataclass(frozen=True, slots=True)
class Timing:
    """A linear model of one engine step. prefill_tokens_per_second: with 0 prefill takes no time."""

    prefill_tokens_per_second: float = 0.0
    decode_step_seconds: float = 0.0
    decode_seconds_per_sequence: float = 0.0

    def step_seconds(self, prefill_tokens: int, decode_sequences: int) -> float:
        seconds = 0.0
        if prefill_tokens and self.prefill_tokens_per_second:
            seconds += prefill_tokens / self.prefill_tokens_per_second
        if decode_sequences:
            seconds += self.decode_step_seconds + self.decode_seconds_per_sequence * decode_sequences
        return seconds

    def proposing(self, tokens: int, token_seconds: float) -> "Timing":
        """Returns that of an engine that proposes and verifies so many tokens for each sequence in each
        step."""
        per_sequence = self.decode_seconds_per_sequence + tokens * token_seconds
        return replace(self, decode_seconds_per_sequence=per_sequence)

    def for_each_token(self, tokens: int, acceptance: float) -> "Timing":
        """Returns the time of a step by the tokens that it gives a sequence on average, when so many are
        proposed."""
        given = sum(acceptance**accepted for accepted in range(tokens + 1))
        return replace(
            self,
            decode_step_seconds=self.decode_step_seconds / given,
            decode_seconds_per_sequence=self.decode_seconds_per_sequence / given,
        )


class StepTimer(Protocol):
    """How time passes for an engine."""

    def now(self) -> float:
        """Returns monotonic seconds."""

    async def sleep_until(self, when: float) -> None:
        """Returns at `when` or later, and always lets other tasks run."""


class RealStepTimer:
    """Uses the event loop's clock."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))
