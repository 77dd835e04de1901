"""Which blocks of a prompt each step of its engine makes final. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.ids import TransferId


@dataclass(frozen=True, slots=True)
class PushChunk:
    """What one engine step computes of a prompt: its blocks from start_block to end_block become final, and
    those before it are. block_ids: of the prompt so far, from its first block on. restarted: the engine had
    taken the blocks away, and computes again."""

    transfer_id: TransferId
    start_block: int
    end_block: int
    block_ids: tuple[int, ...]
    restarted: bool = False


@dataclass(slots=True)
class PromptFollower:
    """Of one prefill that is to be pushed; told of its steps in order."""

    transfer_id: TransferId
    prompt_tokens: int
    block_size_tokens: int
    _computed: int = 0
    _block_ids: tuple[int, ...] = ()

    def step(self, start: int, tokens: int, block_ids: Sequence[int]) -> PushChunk:
        """It computes so many tokens from number `start` on. A block is final when it is full, or the prompt
        ends in it. An engine that preempts a request takes its blocks away, and begins again with what
        its cache still has of them."""
        end = min(start + tokens, self.prompt_tokens)
        known = len(self._block_ids)
        restarted = start < self._computed or tuple(block_ids[:known]) != self._block_ids
        self._computed, self._block_ids = end, tuple(block_ids)
        size = self.block_size_tokens
        end_block = -(-end // size) if end == self.prompt_tokens else end // size
        return PushChunk(self.transfer_id, start // size, end_block, self._block_ids, restarted)
