"""Plans the next step of the simulated engine: continuous batching over a block pool. Pure.

The engine calls `plan`, waits as long as the step takes, and calls `commit`; `add`, `abort` and `pull_ended`
may come in between. As in vLLM, running requests go first, then waiting ones in order, within a budget of
tokens. When a running sequence finds no block, the sequence that was admitted last loses its blocks and waits
again.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic

from llmserve.core.ids import RequestId
from llmserve.core.request import PrefillStats
from llmserve.engines.sim.limits import BatchLimits
from llmserve.engines.sim.pool import BlockPool
from llmserve.engines.sim.sequence import Phase
from llmserve.engines.sim.step import Committed, PullOrder, S, Step


class SimScheduler(Generic[S]):
    def __init__(self, pool: BlockPool, limits: BatchLimits) -> None:
        self._pool = pool
        self._limits = limits
        self._alive: dict[RequestId, S] = {}
        self._waiting: deque[S] = deque()
        self._ready: deque[S] = deque()  # loaded sequences, which have blocks and need a slot
        self._running: list[S] = []
        self._pulling: dict[RequestId, PullOrder[S]] = {}
        self.preemptions = 0

    # -- requests come and go

    def add(self, sequence: S) -> None:
        assert sequence.request_id not in self._alive, "request ids are unique"
        self._alive[sequence.request_id] = sequence
        self._waiting.append(sequence)

    def has(self, request_id: RequestId) -> bool:
        """Says whether a request is known, also an aborted one whose transfer has not ended."""
        return request_id in self._alive or request_id in self._pulling

    def abort(self, request_id: RequestId) -> S | None:
        """Stops and returns a sequence; None: it is not known. A PULLING sequence keeps its blocks until
        pull_ended, because a transfer still writes into them."""
        sequence = self._alive.get(request_id)
        if sequence is not None:
            self._remove(sequence)
            if request_id not in self._pulling:
                self._drop_blocks(sequence)
        return sequence

    def finish(self, sequence: S) -> list[int]:
        """Ends a running sequence and returns its blocks, which the caller releases to the pool."""
        self._remove(sequence)
        blocks, sequence.blocks = sequence.blocks, []
        return blocks

    def _remove(self, sequence: S) -> None:
        del self._alive[sequence.request_id]
        for queue in (self._waiting, self._ready, self._running):
            if sequence in queue:
                queue.remove(sequence)
        sequence.phase = Phase.ENDED

    def _drop_blocks(self, sequence: S) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed_tokens = 0

    # -- transfers

    def pull_ended(self, request_id: RequestId, loaded: bool, tokens: Sequence[int] = ()) -> S | None:
        """Handles the end of a transfer, which no longer touches the blocks. loaded: False makes the sequence
        compute its prompt, unless the caller ends it. tokens: generated elsewhere; the sequence continues
        after them. Returns None for a sequence that was aborted in the meantime."""
        order = self._pulling.pop(request_id)
        sequence = order.sequence
        if sequence.phase is Phase.ENDED:
            self._drop_blocks(sequence)
            return None
        sequence.continue_from(tokens)
        if loaded:
            self._count_loaded(order)
        sequence.phase = Phase.WAITING
        self._ready.append(sequence)
        return sequence

    def _count_loaded(self, order: PullOrder[S]) -> None:
        sequence = order.sequence
        covered = min(order.ticket.num_tokens, sequence.prompt_tokens)
        sequence.stats = replace(sequence.stats, external_cached_tokens=covered - sequence.computed_tokens)
        sequence.computed_tokens = min(covered, sequence.prompt_tokens - 1)
        self._publish(sequence)

    # -- steps

    def plan(self) -> Step[S]:
        step = Step[S]()
        budget = self._plan_running(step, self._limits.batch_tokens)
        budget = self._plan_ready(step, budget)
        self._plan_waiting(step, budget)
        return step

    def _plan_running(self, step: Step[S], budget: int) -> int:
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            count = min(sequence.missing_tokens, budget, self._longest_chunk())
            if not self._grow(sequence, count):
                self._preempt_last()
                continue  # look at this index again: a later sequence made room, or this one is gone
            step.work.append((sequence, count))
            budget -= count
            index += 1
        return budget

    def _grow(self, sequence: S, count: int) -> bool:
        wanted = sequence.blocks_for(sequence.computed_tokens + count) - len(sequence.blocks)
        if wanted > self._pool.available_blocks:
            return False
        sequence.blocks.extend(self._pool.allocate(max(0, wanted)))
        return True

    def _preempt_last(self) -> None:
        sequence = self._running.pop()
        self._drop_blocks(sequence)
        sequence.phase = Phase.WAITING
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _plan_ready(self, step: Step[S], budget: int) -> int:
        """Plans loaded sequences before waiting ones: they hold blocks, and can only make room by ending."""
        while self._ready and budget > 0 and self._has_slot():
            sequence = self._ready[0]
            count = self._chunk(sequence.missing_tokens, budget, step)
            if count == 0 or not self._grow(sequence, count):
                break
            self._ready.popleft()
            budget -= self._admit(sequence, count, step)
        return budget

    def _plan_waiting(self, step: Step[S], budget: int) -> None:
        while self._waiting and budget > 0 and self._has_slot():
            sequence = self._waiting[0]
            cached = self._pool.match(sequence.reusable_hashes())
            if self._external_tokens(sequence, len(cached)) > 0:
                if not self._start_pull(sequence, cached, step):
                    break
                continue
            count = self._start_local(sequence, cached, budget, step)
            if count == 0:
                break
            budget -= count

    def _has_slot(self) -> bool:
        return len(self._running) < self._limits.max_concurrency

    def _chunk(self, missing: int, budget: int, step: Step[S]) -> int:
        """Returns how many of the missing tokens go into this step; 0: the sequence waits for another
        step."""
        if self._limits.chunked_prefill:
            return min(missing, budget, self._longest_chunk())
        return missing if missing <= budget or not step.work else 0

    def _longest_chunk(self) -> int:
        return self._limits.long_prompt_tokens or self._limits.batch_tokens

    def _start_local(self, sequence: S, cached: list[int], budget: int, step: Step[S]) -> int:
        cached_tokens = len(cached) * sequence.block_size
        count = self._chunk(sequence.total_tokens - cached_tokens, budget, step)
        if count == 0 or not self._place(sequence, cached, cached_tokens + count):
            return 0
        self._waiting.popleft()
        if sequence.ticket is not None:  # the local cache has everything that it covers
            step.releases.append(sequence.ticket)
            sequence.ticket = None
        return self._admit(sequence, count, step)

    def _start_pull(self, sequence: S, cached: list[int], step: Step[S]) -> bool:
        ticket = sequence.ticket
        assert ticket is not None, "only a ticket gives external tokens"
        covered = min(ticket.num_tokens, sequence.prompt_tokens)
        if not self._place(sequence, cached, covered):
            return False
        self._waiting.popleft()
        sequence.ticket = None  # after a failure or a preemption the sequence computes its prompt
        sequence.phase = Phase.PULLING
        tokens = range(sequence.computed_tokens, covered)
        local = sequence.blocks[len(cached) : sequence.blocks_for(covered)]
        order = PullOrder(sequence, ticket, tokens, tuple(local))
        self._pulling[sequence.request_id] = order
        step.pulls.append(order)
        return True

    def _place(self, sequence: S, cached: list[int], tokens: int) -> bool:
        """Takes cached and new blocks for the first `tokens` tokens. Returns False when there is no room."""
        wanted = sequence.blocks_for(tokens) - len(cached)
        if wanted > self._pool.available_blocks - self._pool.idle_among(cached):
            return False
        self._pool.hold(cached)
        sequence.blocks = [*cached, *self._pool.allocate(max(0, wanted))]
        sequence.computed_tokens = len(cached) * sequence.block_size
        sequence.published_blocks = len(cached)
        if sequence.output_tokens == 0:
            sequence.stats = PrefillStats(sequence.prompt_tokens, sequence.computed_tokens)
        return True

    def _external_tokens(self, sequence: S, cached_blocks: int) -> int:
        if sequence.ticket is None:
            return 0
        covered = min(sequence.ticket.num_tokens, sequence.prompt_tokens)
        return covered - cached_blocks * sequence.block_size

    def _admit(self, sequence: S, count: int, step: Step[S]) -> int:
        sequence.phase = Phase.RUNNING
        self._running.append(sequence)
        step.work.append((sequence, count))
        return count

    def commit(self, step: Step[S]) -> Committed[S]:
        """Records a computed step, without sequences that ended in the meantime."""
        committed = Committed[S]()
        for sequence, count in step.work:
            if sequence.phase is not Phase.RUNNING:
                continue
            sequence.computed_tokens += count
            committed.filled.extend(self._publish(sequence))
            committed.advanced.append((sequence, count))
            if sequence.missing_tokens == 0:
                committed.complete.append(sequence)
        return committed

    def accept(self, sequence: S) -> list[tuple[S, int]] | None:
        """One more token of a running sequence was computed in the step that was just committed, since its
        proposal was right. Returns the blocks that became full; None: there is no room for the token."""
        if not self._grow(sequence, 1):
            return None
        sequence.computed_tokens += 1
        return self._publish(sequence)

    def steps_alike(self, step: Step[S], most: int) -> int:
        """Returns how many steps from this planned one on, from 1 to `most`, compute one token of each of the
        same sequences if no request comes or ends. Requests that wait now found no room, and find none while
        the running ones grow."""
        if len(step.work) < len(self._running) or step.decode_sequences < len(step.work):
            return 1
        while most > 1 and self._growth(step, most) > self._pool.available_blocks:
            most //= 2
        return max(1, most)

    def repeat(self, step: Step[S], times: int) -> None:
        """Records that so many steps like this one, which steps_alike allows, were computed before it. Only
        for sequences whose tokens are counted and not generated."""
        for sequence, count in step.work if times else ():
            sequence.total_tokens += times
            sequence.computed_tokens += times
            grown = self._grow(sequence, count)
            assert grown, "more steps than steps_alike allows"

    def _growth(self, step: Step[S], steps: int) -> int:
        return sum(
            sequence.blocks_for(sequence.computed_tokens + steps) - len(sequence.blocks)
            for sequence, _ in step.work
        )

    def _publish(self, sequence: S) -> list[tuple[S, int]]:
        new = range(sequence.published_blocks, sequence.full_blocks)
        for index in new:
            self._pool.publish(sequence.blocks[index], sequence.hash_of(index), sequence.adapter)
        sequence.published_blocks = max(sequence.published_blocks, sequence.full_blocks)
        return [(sequence, index) for index in new]

    # -- load

    @property
    def running_requests(self) -> int:
        return len(self._running)

    @property
    def waiting_requests(self) -> int:
        """The requests that were added and do not run, including those that load."""
        return len(self._alive) - len(self._running)
