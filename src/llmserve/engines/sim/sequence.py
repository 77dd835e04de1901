"""A request in the simulated engine: its tokens, its blocks, and the tokens that the simulated model
generates.

A token depends on the whole sequence before it and on the adapter, and on nothing else. So prefill and
decode on two engines, one engine alone, and a request that continues elsewhere from prompt and tokens all
give the same text, which tests compare.
"""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Sequence
from dataclasses import replace
from enum import Enum

import numpy as np

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.blocks import chain_hashes, next_hash
from llmserve.core.ids import AdapterDigest, BlockHash, RequestId
from llmserve.core.kv_params import is_pushed, transfer_of
from llmserve.core.request import Acceptance, EngineRequest, FinishReason, HandoverReport, PrefillStats
from llmserve.engines.kv_transfer import PromptFollower
from llmserve.engines.sim.link import KvSource
from llmserve.engines.sim.memory import Digests, first_digest, next_digests

_CHANCES = 1 << 20  # a chance is a multiple of one by this


class TokenSource:
    """Generates tokens. `feed` takes every token of the sequence in order; `next_token` may be called at any
    time. Token ids are uint32."""

    def __init__(
        self, token_ids: Sequence[int], vocab_size: int, adapter: AdapterDigest = BASE_MODEL
    ) -> None:
        self._vocab_size = vocab_size
        key = hashlib.sha256(adapter.encode()).digest() if adapter else b""
        self._digest = hashlib.blake2b(array("I", token_ids).tobytes(), digest_size=8, key=key)

    def feed(self, token_id: int) -> None:
        self._digest.update(array("I", (token_id,)).tobytes())

    def next_token(self, banned: Collection[int] = ()) -> int:
        """banned: tokens that must not come now; the next higher one is taken instead."""
        token = int.from_bytes(self._digest.digest(), "little") % self._vocab_size
        for _ in range(self._vocab_size):
            if token not in banned:
                break
            token = (token + 1) % self._vocab_size
        return token

    def chance(self) -> float:
        """Returns a number of at least 0 and below 1 that depends on the same as the next token."""
        return int.from_bytes(self._digest.digest(), "little") // self._vocab_size % _CHANCES / _CHANCES


class Phase(Enum):
    WAITING = "waiting"  # it has no blocks yet, or is loaded and waits for a slot
    PULLING = "pulling"  # a transfer fills its blocks
    RUNNING = "running"
    ENDED = "ended"


class BlockSequence(ABC):
    """A request as the scheduler sees it. total_tokens: the tokens of the prompt and the output.
    computed_tokens: those whose KV lies in `blocks`. ticket: is set until it is used."""

    adapter = BASE_MODEL

    def __init__(
        self, request_id: RequestId, prompt_tokens: int, block_size: int, ticket: KvSource | None
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
        """Blocks that may come from the cache: at least one token must be computed to get an output."""
        return (self.total_tokens - 1) // self.block_size

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def reusable_hashes(self) -> list[BlockHash]:
        return [self.hash_of(index) for index in range(self.reusable_blocks)]

    @property
    def prefill_stats(self) -> PrefillStats:
        """The figures of the prompt once it is computed, with the tokens that it added to the prefix
        cache."""
        kept = min(self.published_blocks * self.block_size, self.prompt_tokens)
        return replace(self.stats, cache_creation_tokens=max(0, kept - self.stats.cached_tokens))

    def continue_from(self, tokens: Sequence[int]) -> None:
        """Appends tokens that another engine generated to the prompt."""
        self.total_tokens += len(tokens)
        self.prompt_tokens = self.total_tokens
        self.stats = replace(self.stats, prompt_tokens=self.prompt_tokens)

    @abstractmethod
    def hash_of(self, index: int) -> BlockHash:
        """Returns the hash of a full block."""


class SimSequence(BlockSequence):
    """A request with its tokens and the content of their KV."""

    def __init__(
        self, request: EngineRequest, ticket: KvSource | None, block_size: int, vocab_size: int
    ) -> None:
        super().__init__(request.request_id, len(request.prompt_token_ids), block_size, ticket)
        self.request, self.adapter = request, request.adapter
        self.tokens = list(request.prompt_token_ids)
        self.handover: HandoverReport | None = None
        self.acceptance = Acceptance(0, 0, 0)
        self._vocab_size = vocab_size
        self.hashes = chain_hashes(self.tokens, block_size, request.cache_salt, self.adapter)
        self._source = TokenSource(self.tokens, vocab_size, self.adapter)
        self._digests = first_digest(request.cache_salt + self.adapter)  # element i + 1 is that of token i

    @property
    def hands_over(self) -> bool:
        params = self.request.kv_transfer_params
        return bool(params and params.get("do_remote_decode"))

    @property
    def follower(self) -> PromptFollower | None:
        """A new follower, if the KV of this request is to be pushed."""
        params = self.request.kv_transfer_params
        if not params or not self.hands_over or not is_pushed(params):
            return None
        return PromptFollower(transfer_of(params), self.prompt_tokens, self.block_size)

    def continue_from(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._source.feed(token)
        self.tokens.extend(tokens)
        super().continue_from(tokens)

    def hash_of(self, index: int) -> BlockHash:
        """Returns the hash of a full block. Those of the output are computed as blocks fill."""
        while len(self.hashes) <= index:
            start = len(self.hashes) * self.block_size
            parent = self.hashes[-1] if self.hashes else None
            held = self.tokens[start : start + self.block_size]
            self.hashes.append(next_hash(parent, held, self.request.cache_salt, self.adapter))
        return self.hashes[index]

    def tokens_of(self, index: int) -> range:
        """Returns the tokens of a full block."""
        return range(index * self.block_size, (index + 1) * self.block_size)

    def content(self, tokens: range) -> Digests:
        """Returns the content of the cells of these tokens once they are computed."""
        known = len(self._digests) - 1
        if known < tokens.stop:
            new = next_digests(self._digests[-1], known, self.tokens[known:])
            self._digests = np.concatenate((self._digests, new))
        return self._digests[tokens.start + 1 : tokens.stop + 1]

    def sample(self) -> int:
        """Appends the next token and returns it."""
        limits = self.request.limits
        banned = limits.stop_token_ids if self.output_tokens < limits.min_tokens else frozenset[int]()
        token = self._source.next_token(banned)
        self._source.feed(token)
        self.tokens.append(token)
        self.total_tokens += 1
        return token

    def was_proposed(self, acceptance: float) -> bool:
        """Returns whether the last token had been proposed. acceptance: the probability of that."""
        return self._source.chance() < acceptance

    def count_proposals(self, proposed: int, accepted: int) -> None:
        """Called after each step in which tokens were proposed."""
        before = self.acceptance
        self.acceptance = Acceptance(
            before.steps + 1, before.proposed_tokens + proposed, before.accepted_tokens + accepted
        )

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Returns the reason to end after the last token; None: the request continues."""
        limits = self.request.limits
        if self.tokens[-1] in limits.stop_token_ids and self.output_tokens > limits.min_tokens:
            return FinishReason.STOP
        if self.output_tokens >= limits.max_tokens or len(self.tokens) >= max_model_len:
            return FinishReason.LENGTH
        return None
