"""The hand-over of the simulated engine: the blocks that it holds for readers, and the check of what it
fetched."""

import numpy as np

from llmserve.core.ids import RequestId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import Finish, PromptFollower, PullResult
from llmserve.engines.sim.link import SimLink
from llmserve.engines.sim.memory import KvMemory
from llmserve.engines.sim.pool import BlockPool
from llmserve.engines.sim.sequence import SimSequence
from llmserve.engines.sim.step import PullOrder
from llmserve.engines.spec import EngineSpec


class KvHandover:
    """Tracks the hand-overs between the scheduler's orders and the link."""

    def __init__(self, spec: EngineSpec, link: SimLink, memory: KvMemory, pool: BlockPool) -> None:
        self._spec = spec
        self._link = link
        self._memory = memory
        self._pool = pool
        self._leased: dict[RequestId, list[int]] = {}
        self._pulls: dict[RequestId, PullOrder[SimSequence]] = {}
        self._followers: dict[RequestId, PromptFollower] = {}  # those of prefills that are pushed

    def holds(self, request_id: RequestId) -> bool:
        """Says whether blocks of this finished request are still pinned for a reader."""
        return request_id in self._leased

    def announce(self, sequence: SimSequence) -> None:
        """Announces a new request whose KV is to be pushed."""
        if follower := sequence.follower:
            self._followers[sequence.request_id] = follower
            self._link.announce(follower.transfer_id)

    def computed(self, sequence: SimSequence, tokens: int) -> None:
        """Passes on that a step has computed so many tokens. The full blocks are in memory."""
        follower = self._followers.get(sequence.request_id)
        if follower is None:
            return
        if sequence.computed_tokens >= sequence.prompt_tokens:
            self._write_tail(sequence, sequence.blocks)
        start = sequence.computed_tokens - tokens
        self._link.computed(follower.step(start, tokens, BlockTable(tuple(sequence.blocks))))

    def drop(self, sequence: SimSequence) -> None:
        """Drops a request that ended and is not handed over."""
        if follower := self._followers.pop(sequence.request_id, None):
            self._link.drop(follower.transfer_id)

    def grant(self, sequence: SimSequence, blocks: list[int]) -> PullParams:
        """Leases the blocks of a finished prefill and takes over their reference."""
        self._write_tail(sequence, blocks)
        self._leased[sequence.request_id] = blocks
        ticket = self._ticket(sequence, blocks)
        if follower := self._followers.pop(sequence.request_id, None):
            drawn = tuple(sequence.tokens[sequence.prompt_tokens :])
            self._link.finish(follower.transfer_id, Finish(sequence.request_id, ticket, drawn))
        return ticket

    def _write_tail(self, sequence: SimSequence, blocks: list[int]) -> None:
        """Writes the last block of the prompt if it is not full."""
        tokens, held = sequence.prompt_tokens, sequence.blocks_for(sequence.prompt_tokens)
        if rest := tokens % sequence.block_size:
            last = range(tokens - rest, tokens)
            self._memory.write(blocks[held - 1 : held], last, sequence.content(last))

    def _ticket(self, sequence: SimSequence, blocks: list[int]) -> PullParams:
        return PullParams(
            worker_id=self._spec.worker_id,
            epoch=self._spec.epoch,
            lease_id=self._link.grant(sequence.request_id, blocks),
            endpoints=(self._link.endpoint,),
            blocks=BlockTable(tuple(blocks[: sequence.blocks_for(sequence.prompt_tokens)])),
            num_tokens=sequence.prompt_tokens,
            block_size_tokens=sequence.block_size,
            lease_seconds=self._spec.transfer.lease_seconds,
            adapter=sequence.adapter,
        )

    def free_ended(self) -> int:
        """Returns blocks of ended leases to the pool. Returns the number of these leases."""
        ended = self._link.take_ended()
        for request_id in ended:
            self._pool.release(self._leased.pop(request_id))
        return len(ended)

    def start(self, order: PullOrder[SimSequence]) -> None:
        request_id = order.sequence.request_id
        self._pulls[request_id] = order
        self._link.pull(request_id, order.ticket, order.tokens, order.local_block_ids)

    def take_pulled(self) -> list[PullResult]:
        """Returns ended transfers. A transfer that brought other bytes than the prompt requires has
        failed."""
        return [self._checked(result) for result in self._link.take_pulled()]

    def _checked(self, result: PullResult) -> PullResult:
        order = self._pulls.pop(result.request_id)
        if not result.ok or self._is_right(order):
            return result
        return PullResult(result.request_id, "the fetched blocks are not those of the prompt")

    def _is_right(self, order: PullOrder[SimSequence]) -> bool:
        arrived = self._memory.read(order.local_block_ids, order.tokens)
        return np.array_equal(arrived, order.sequence.content(order.tokens))
