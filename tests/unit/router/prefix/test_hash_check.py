"""Whether prompts are found again is told from what has run."""

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, WorkerId
from llmserve.kvstore.directory.directory import Holder
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.prefix.hash_check import LOOK_AFTER_SECONDS, MISSES_THAT_TELL, HashConsistency, HashState
from llmserve.router.prefix.index import PrefixIndex

X, Y = WorkerId("prefill-0"), WorkerId("prefill-1")
ASKED, OTHER = BlockHash(b"asked"), BlockHash(b"other")


class World:
    def __init__(self) -> None:
        self.clock, self.index = VirtualClock(1.0), PrefixIndex()
        self.index.begin("m")
        self.hash_check = HashConsistency(self.clock, self.index)

    def reports(self, worker: WorkerId, *hashes: BlockHash) -> None:
        assert self.index.apply("m", DirectoryUpdate(Holder(worker), 1, is_snapshot=True, stored=hashes))

    def runs(self, worker: WorkerId = X, times: int = 1, epoch: int = 1) -> None:
        for _ in range(times):
            self.hash_check.ran(worker, epoch, ASKED)
            self.clock.advance(LOOK_AFTER_SECONDS)
            self.hash_check.look()


@pytest.fixture
def world() -> World:
    return World()


def test_a_block_that_is_reported_is_proof(world: World) -> None:
    world.hash_check.ran(X, 1, ASKED)
    world.reports(X, ASKED)
    assert world.hash_check.next_due() == world.clock.now() + LOOK_AFTER_SECONDS
    world.clock.advance(LOOK_AFTER_SECONDS)
    world.hash_check.look()
    assert (world.hash_check.state, world.hash_check.problem) == (HashState.MATCHES, "")
    world.hash_check.ran(X, 1, OTHER)
    assert world.hash_check.next_due() is None  # once is enough


def test_a_worker_has_two_seconds_to_report(world: World) -> None:
    world.hash_check.ran(X, 1, ASKED)
    world.clock.advance(1.5)
    world.hash_check.look()
    world.reports(X, ASKED)
    world.clock.advance(0.5)
    world.hash_check.look()
    assert world.hash_check.state is HashState.MATCHES


def test_the_next_look_is_at_the_worker_that_ran_first(world: World) -> None:
    for worker in (X, Y):
        world.hash_check.ran(worker, 1, ASKED)
        world.clock.advance(0.5)
    assert world.hash_check.next_due() == world.clock.now() + 1.0


def test_looking_again_without_a_new_prompt_says_nothing(world: World) -> None:
    world.reports(X, OTHER)
    world.runs()
    for _ in range(9):
        world.clock.advance(LOOK_AFTER_SECONDS)
        world.hash_check.look()
    assert world.hash_check.state is HashState.UNPROVEN


def test_one_proven_worker_is_enough_while_others_are_unproven(world: World) -> None:
    world.reports(X, ASKED)
    world.runs(X)
    world.runs(Y)
    assert world.hash_check.state is HashState.MATCHES


def test_three_prompts_are_no_accident(world: World) -> None:
    world.reports(X, OTHER)
    world.runs(times=2)
    assert world.hash_check.problem == ""
    world.runs()
    assert world.hash_check.problem.startswith("prefill-0 reports 1 KV blocks")


def test_other_hashes_than_were_asked_for_are_told_with_both_facts(world: World) -> None:
    world.reports(X, OTHER, BlockHash(b"more"))
    states = []
    for _ in range(MISSES_THAT_TELL):
        world.runs()
        states.append(world.hash_check.state)
    assert states == [HashState.UNPROVEN] * (MISSES_THAT_TELL - 1) + [HashState.DIFFERS]
    assert (
        "prefill-0 reports 2 KV blocks, but of the last 3 prompts that it ran none"
        in world.hash_check.problem
    )


def test_one_worker_that_differs_is_told_though_others_match(world: World) -> None:
    world.reports(X, OTHER)
    world.reports(Y, ASKED)
    world.runs(X, MISSES_THAT_TELL)
    world.runs(Y)
    assert world.hash_check.state is HashState.DIFFERS
    assert "prefill-1" not in world.hash_check.problem


def test_a_worker_that_reports_nothing_is_not_accused(world: World) -> None:
    world.runs(times=2 * MISSES_THAT_TELL)  # no prefix caching, or its reports do not come through
    assert (world.hash_check.state, world.hash_check.problem) == (HashState.UNPROVEN, "")


def test_a_block_that_was_evicted_in_between_is_no_accusation_of_a_proven_worker(world: World) -> None:
    world.reports(X, ASKED)
    world.runs()
    world.reports(X, OTHER)
    world.runs(times=MISSES_THAT_TELL)
    assert world.hash_check.state is HashState.MATCHES


def test_found_at_last_it_is_no_problem_any_more(world: World) -> None:
    world.reports(X, OTHER)
    world.runs(times=MISSES_THAT_TELL)
    world.reports(X, ASKED)
    world.runs()
    assert (world.hash_check.state, world.hash_check.problem) == (HashState.MATCHES, "")


def test_a_newer_incarnation_has_to_prove_it_anew_and_an_older_one_is_not_heard(world: World) -> None:
    world.reports(X, ASKED)
    world.runs()
    world.reports(X, OTHER)
    world.runs(times=MISSES_THAT_TELL, epoch=2)
    assert world.hash_check.state is HashState.DIFFERS
    world.hash_check.ran(X, 1, ASKED)
    assert world.hash_check.next_due() is None


def test_a_worker_that_is_gone_is_no_problem(world: World) -> None:
    world.reports(X, OTHER)
    world.runs(times=MISSES_THAT_TELL)
    world.index.drop("m")
    assert world.hash_check.problem == ""
