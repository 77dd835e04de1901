"""One leg of a simulated request at an engine. Tokens are counted; they have no values."""

import struct
from enum import Enum

from llmserve.core.ids import BlockHash, RequestId
from llmserve.core.kv_params import PullParams
from llmserve.engines.sim.sequence import BlockSequence
from llmserve.router.prefix.index import HashedPrompt
from llmserve.traces import TracedRequest

_NAME = struct.Struct(">qqq")
# The namespace of blocks that only one request has.
_OWN = -1
_OWN_BYTES = struct.pack(">q", _OWN)


class SimLeg(Enum):
    WHOLE = "whole"  # prompt and answer on one engine
    PREFILL = "prefill"
    DECODE = "decode"


class BlockNames:
    """Names of the blocks of a request's prompt and answer. number: number of the request. namespace: equal
    for requests that share KV."""

    def __init__(self, request: TracedRequest, number: int, namespace: int, block_size: int) -> None:
        self._request, self._number, self._namespace = request, number, namespace
        self.adapter = request.adapter
        self.block_size = block_size
        named_tokens = len(request.prefix_names) * request.run_tokens
        self._shared_blocks = min(request.prompt_tokens, named_tokens) // block_size
        self._names: list[BlockHash] = []

    def of(self, index: int) -> BlockHash:
        while len(self._names) <= index:
            self._names.append(self._name(len(self._names)))
        return self._names[index]

    def prompt(self) -> HashedPrompt:
        """The blocks that another request may have, too."""
        hashes = tuple(self.of(index) for index in range(self._shared_blocks))
        return HashedPrompt(hashes, self.block_size)

    def _name(self, index: int) -> BlockHash:
        """A block that ends within the named runs is shared; any other belongs to this request alone."""
        if index >= self._shared_blocks:
            return BlockHash(_NAME.pack(_OWN, self._number, index))
        run = ((index + 1) * self.block_size - 1) // self._request.run_tokens
        return BlockHash(_NAME.pack(self._namespace, self._request.prefix_names[run], index))


def is_shared(name: bytes) -> bool:
    """Whether several requests may have this block."""
    return not name.startswith(_OWN_BYTES)


class TracedSequence(BlockSequence):
    """answer_tokens: tokens that this leg generates. extra_seconds_per_token: time that computing the prompt
    takes beyond the engine's timing."""

    def __init__(
        self,
        request_id: RequestId,
        leg: SimLeg,
        names: BlockNames,
        prompt_tokens: int,
        answer_tokens: int,
        ticket: PullParams | None = None,
    ) -> None:
        super().__init__(request_id, prompt_tokens, names.block_size, ticket)
        self.leg, self.adapter = leg, names.adapter
        self._names = names
        self._answer_tokens = answer_tokens
        self.extra_seconds_per_token = 0.0

    @property
    def left_tokens(self) -> int:
        """Tokens that are still to be generated."""
        return self._answer_tokens - self.output_tokens

    @property
    def quiet_tokens(self) -> int:
        """Tokens until somebody must be notified: the first token of a request is reported at once."""
        first = self.leg is not SimLeg.DECODE and self.output_tokens == 0
        return 1 if first else self.left_tokens

    def hash_of(self, index: int) -> BlockHash:
        return self._names.of(index)
