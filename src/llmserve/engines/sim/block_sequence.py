"""One request as the simulated engine's scheduler sees it: how many tokens, in which blocks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

from llmserve.core.ids import BlockHash, RequestId
from llmserve.core.request import PrefillStats
from llmserve.engines.sim.link import Ticket


class Phase(Enum):
    WAITING = "waiting"  # no blocks yet, or loaded and waiting for a slot
    PULLING = "pulling"  # its blocks are being filled by a transfer
    RUNNING = "running"
    ENDED = "ended"


class BlockSequence(ABC):
    """computed_tokens counts the tokens whose KV lies in `blocks`. `ticket` is there until it is used.
    total_tokens: of the prompt and what was generated."""

    def __init__(
        self, request_id: RequestId, prompt_tokens: int, block_size: int, ticket: Ticket | None
    ) -> None:
        self.request_id = request_id
        self.ticket = ticket
        self.phase = Phase.WAITING
        self.prompt_tokens = self.total_tokens = prompt_tokens
        self.blocks: list[int] = []
        self.computed_tokens = 0
        self.published_blocks = 0
        self.stats = PrefillStats(prompt_tokens)
        self.block_size = block_size

    @property
    def output_tokens(self) -> int:
        return self.total_tokens - self.prompt_tokens

    @property
    def missing_tokens(self) -> int:
        return self.total_tokens - self.computed_tokens

    @property
    def full_blocks(self) -> int:
        return self.computed_tokens // self.block_size

    @property
    def reusable_blocks(self) -> int:
        """That may come from the cache: at least one token is left to compute, for its output."""
        return (self.total_tokens - 1) // self.block_size

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def reusable_hashes(self) -> list[BlockHash]:
        return [self.hash_of(index) for index in range(self.reusable_blocks)]

    @property
    def prefill_stats(self) -> PrefillStats:
        """Of its prompt, once it is computed: with what the prefix cache has gained by it."""
        kept = min(self.published_blocks * self.block_size, self.prompt_tokens)
        return replace(self.stats, cache_creation_tokens=max(0, kept - self.stats.cached_tokens))

    def continue_from(self, tokens: Sequence[int]) -> None:
        """Tokens that another engine drew become the end of its prompt."""
        self.total_tokens += len(tokens)
        self.prompt_tokens = self.total_tokens
        self.stats = replace(self.stats, prompt_tokens=self.prompt_tokens)

    @abstractmethod
    def hash_of(self, index: int) -> BlockHash:
        """Of a full block."""
