"""Continuous batching: order, budgets, preemption, transfers and aborts. No time, no I/O."""

from collections.abc import Sequence

import pytest

from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.core.request import EngineRequest, PrefillStats, SamplingLimits
from llmserve.engines.sim.limits import BatchLimits
from llmserve.engines.sim.pool import BlockPool
from llmserve.engines.sim.scheduler import SimScheduler
from llmserve.engines.sim.sequence import Phase, SimSequence
from llmserve.engines.sim.step import Step

BLOCK = 4


def sequence(name: str, prompt: Sequence[int], ticket_tokens: int = 0, max_tokens: int = 50) -> SimSequence:
    ticket = None
    if ticket_tokens:
        blocks = tuple(range(100, 100 + -(-ticket_tokens // BLOCK)))
        ticket = PullParams(
            WorkerId("p"), 1, LeaseId("l"), ("h:1",), BlockTable(blocks), ticket_tokens, BLOCK, 30.0
        )
    return SimSequence(
        EngineRequest(RequestId(name), prompt, SamplingLimits(max_tokens)), ticket, BLOCK, 1000
    )


class Bench:
    """A scheduler and its pool; `step` plans, commits, and draws the next tokens."""

    def __init__(
        self,
        blocks: int = 64,
        concurrency: int = 8,
        batch_tokens: int = 64,
        chunked: bool = True,
        long_prompt: int | None = None,
    ):
        self.pool = BlockPool(blocks)
        limits = BatchLimits(concurrency, batch_tokens, chunked, long_prompt)
        self.scheduler = SimScheduler[SimSequence](self.pool, limits)

    def step(self) -> Step[SimSequence]:
        step = self.scheduler.plan()
        for complete in self.scheduler.commit(step).complete:
            complete.sample()
        self.pool.check_integrity()
        return step

    def work(self) -> list[tuple[str, int]]:
        return [(item.request_id, count) for item, count in self.step().work]


def test_a_prompt_is_computed_then_decoded_token_by_token() -> None:
    bench = Bench()
    bench.scheduler.add(sequence("a", range(10)))
    assert bench.work() == [("a", 10)]
    assert bench.work() == [("a", 1)]
    assert bench.pool.used_blocks == 3


def test_long_prompts_are_computed_in_chunks_beside_decodes() -> None:
    bench = Bench(batch_tokens=8)
    bench.scheduler.add(sequence("a", range(4)))
    bench.step()
    bench.scheduler.add(sequence("b", range(50, 70)))
    assert bench.work() == [("a", 1), ("b", 7)]
    assert bench.work() == [("a", 1), ("b", 7)]
    assert bench.work() == [("a", 1), ("b", 6)]


def test_a_long_prompt_leaves_room_in_the_step_for_others() -> None:
    bench = Bench(batch_tokens=16, long_prompt=6)
    bench.scheduler.add(sequence("a", range(14)))
    bench.scheduler.add(sequence("b", range(50, 55)))
    assert bench.work() == [("a", 6), ("b", 5)]
    assert bench.work() == [("a", 6), ("b", 1)]
    assert bench.work() == [("a", 2), ("b", 1)]


def test_without_chunks_a_long_prompt_has_a_step_alone() -> None:
    bench = Bench(batch_tokens=8, chunked=False)
    bench.scheduler.add(sequence("a", range(4)))
    bench.step()
    bench.scheduler.add(sequence("b", range(50, 70)))
    assert bench.work() == [("a", 1)]
    bench.scheduler.abort(RequestId("a"))
    assert bench.work() == [("b", 20)]


def test_no_more_run_than_the_limit() -> None:
    bench = Bench(concurrency=2)
    for name in "abc":
        bench.scheduler.add(sequence(name, [ord(name)] * 4))
    assert [name for name, _ in bench.work()] == ["a", "b"]
    assert (bench.scheduler.running_requests, bench.scheduler.waiting_requests) == (2, 1)
    bench.scheduler.abort(RequestId("a"))
    assert [name for name, _ in bench.work()] == ["b", "c"]


def test_a_repeated_prompt_comes_from_the_cache_but_for_its_last_tokens() -> None:
    bench = Bench()
    first, again = sequence("a", range(8)), sequence("b", range(8))
    bench.scheduler.add(first)
    bench.step()
    bench.scheduler.add(again)
    assert bench.work() == [("a", 1), ("b", 4)]
    assert again.stats == PrefillStats(8, local_cached_tokens=4)
    assert again.blocks[0] == first.blocks[0]


def test_the_last_admitted_makes_room_and_starts_again() -> None:
    bench = Bench(blocks=4)
    old, new = sequence("old", range(8)), sequence("new", range(50, 57))
    bench.scheduler.add(old)
    bench.scheduler.add(new)
    bench.step()  # both full: 2 blocks each
    assert bench.work() == [("old", 1)], "new lost its blocks"
    assert new.phase is Phase.WAITING
    assert bench.scheduler.preemptions == 1
    bench.scheduler.abort(RequestId("old"))
    resumed = bench.step()
    assert [(item.request_id, count) for item, count in resumed.work] == [("new", 4)], (
        "its first block was kept"
    )
    assert new.output_tokens == 2, "as was its first token"


def test_a_lone_sequence_that_fills_the_pool_is_not_stuck_behind_itself() -> None:
    bench = Bench(blocks=4)
    bench.scheduler.add(sequence("a", range(12)))
    for _ in range(4):
        bench.step()
    assert bench.pool.available_blocks == 0


def test_a_ticket_is_pulled_beyond_what_the_cache_has() -> None:
    bench = Bench()
    bench.scheduler.add(sequence("cached", range(4)))
    bench.step()
    pulled = sequence("a", range(10), ticket_tokens=10)
    bench.scheduler.add(pulled)
    (order,) = bench.step().pulls
    assert order.tokens == range(4, 10)
    assert order.local_block_ids == tuple(pulled.blocks[1:])
    assert pulled.phase is Phase.PULLING
    bench.scheduler.pull_ended(RequestId("a"), loaded=True)
    assert ("a", 1) in bench.work(), "only the last token is computed"
    assert pulled.stats == PrefillStats(10, local_cached_tokens=4, external_cached_tokens=6)


def test_a_ticket_that_the_cache_covers_is_released() -> None:
    bench = Bench()
    bench.scheduler.add(sequence("cached", range(12)))
    bench.step()
    bench.scheduler.add(sequence("a", range(12), ticket_tokens=8))
    step = bench.step()
    assert not step.pulls
    (released,) = step.releases
    assert isinstance(released, PullParams)
    assert released.lease_id == "l"


def test_a_failed_pull_computes_the_prompt() -> None:
    bench = Bench()
    pulled = sequence("a", range(10), ticket_tokens=10)
    bench.scheduler.add(pulled)
    bench.step()
    bench.scheduler.pull_ended(RequestId("a"), loaded=False)
    assert bench.work() == [("a", 10)]
    assert pulled.stats == PrefillStats(10)


def test_an_aborted_pull_keeps_its_blocks_until_the_transfer_ends() -> None:
    bench = Bench()
    bench.scheduler.add(sequence("a", range(10), ticket_tokens=10))
    bench.step()
    bench.scheduler.abort(RequestId("a"))
    assert bench.pool.used_blocks == 3
    assert bench.scheduler.has(RequestId("a"))
    assert bench.scheduler.pull_ended(RequestId("a"), loaded=True) is None
    assert bench.pool.used_blocks == 0


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_abort_gives_everything_back(steps: int) -> None:
    bench = Bench(batch_tokens=8)
    bench.scheduler.add(sequence("a", range(12)))
    for _ in range(steps):
        bench.step()
    bench.scheduler.abort(RequestId("a"))
    assert bench.pool.used_blocks == 0
    assert bench.step().work == []
    assert bench.scheduler.abort(RequestId("a")) is None


def test_an_abort_between_plan_and_commit_is_not_brought_back() -> None:
    bench = Bench()
    bench.scheduler.add(sequence("a", range(12)))
    step = bench.scheduler.plan()
    bench.scheduler.abort(RequestId("a"))
    assert bench.scheduler.commit(step).complete == []
    assert bench.pool.used_blocks == 0


def test_a_sequence_that_waits_for_room_blocks_those_behind_it() -> None:
    bench = Bench(blocks=4)
    bench.scheduler.add(sequence("big", range(9)))
    bench.step()
    bench.scheduler.add(sequence("bigger", range(50, 62)))
    bench.scheduler.add(sequence("small", range(90, 92)))
    assert bench.work() == [("big", 1)]
    assert bench.scheduler.waiting_requests == 2


def test_many_steps_at_once_come_to_the_same_as_one_by_one() -> None:
    """Blocks, counts and what can be reused, with decodes of different lengths."""
    benches = Bench(), Bench()
    for bench in benches:
        bench.scheduler.add(sequence("a", range(10)))
        bench.scheduler.add(sequence("b", range(50, 57)))
        bench.step()
    one, other = benches
    step = one.scheduler.plan()
    assert one.scheduler.steps_alike(step, 9) == 9
    one.scheduler.repeat(step, 8)
    drawn = [s.computed_tokens for s in one.scheduler.commit(step).complete]
    for _ in range(9):
        last = other.step()
    assert drawn == [s.computed_tokens for s, _ in last.work]
    assert one.pool.used_blocks == other.pool.used_blocks
    one.pool.check_integrity()


def test_steps_are_alike_only_while_all_decode_and_blocks_are_there() -> None:
    bench = Bench(blocks=6, batch_tokens=8)
    bench.scheduler.add(sequence("a", range(8)))
    bench.step()
    assert (
        bench.scheduler.steps_alike(bench.scheduler.plan(), 100) == 12
    )  # 100, 50, 25, then: 20 tokens fit 5 blocks
    bench.scheduler.add(sequence("b", range(50, 60)))
    assert bench.scheduler.steps_alike(bench.scheduler.plan(), 100) == 1
