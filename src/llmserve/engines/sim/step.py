"""What the scheduler of a simulated engine orders: a step, and what comes of it."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llmserve.engines.sim.block_sequence import BlockSequence
from llmserve.engines.sim.link import Ticket

S = TypeVar("S", bound=BlockSequence)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """batch_tokens: computed in one step. Without chunked prefill a longer prompt has a step alone.
    long_prompt_tokens: computed in one step of one prompt; None: as many as there is room for."""

    max_concurrency: int
    batch_tokens: int
    chunked_prefill: bool = True
    long_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PullOrder(Generic[S]):
    """Copy these tokens of the ticket's prompt into the local blocks, the first of which is that of the
    first token."""

    sequence: S
    ticket: Ticket
    tokens: range
    local_block_ids: tuple[int, ...]


@dataclass(slots=True)
class Step(Generic[S]):
    """work: tokens to compute for each sequence. pulls are to be started now; the tickets in
    releases are not needed. A step without work takes no time."""

    work: list[tuple[S, int]] = field(default_factory=list)
    pulls: list[PullOrder[S]] = field(default_factory=list)
    releases: list[Ticket] = field(default_factory=list)

    @property
    def prefill_tokens(self) -> int:
        return sum(count for sequence, count in self.work if not _decodes(sequence, count))

    @property
    def decode_sequences(self) -> int:
        return sum(1 for sequence, count in self.work if _decodes(sequence, count))


@dataclass(slots=True)
class Committed(Generic[S]):
    """complete: sequences whose next token can be drawn. filled: blocks that became full: whose, and at which
    place of its prompt and output. advanced: who computed how many tokens."""

    complete: list[S] = field(default_factory=list)
    filled: list[tuple[S, int]] = field(default_factory=list)
    advanced: list[tuple[S, int]] = field(default_factory=list)


def _decodes(sequence: BlockSequence, count: int) -> bool:
    """A fully loaded prompt's last token costs what a decoded one does."""
    return count == 1 and sequence.computed_tokens > 0
