"""The router of a simulated cluster knows what its engines' caches hold, and when."""

import pytest

from llmserve.core.clock import Agenda
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import PullParams
from llmserve.engines.sim.limits import BatchLimits
from llmserve.engines.sim.step import PullOrder, Timing
from llmserve.simulate.engine import VirtualEngine
from llmserve.simulate.index_feed import IndexFeed
from llmserve.simulate.sequence import BlockNames, SimLeg, TracedSequence
from llmserve.simulate.shape import ClusterShape
from llmserve.traces import TracedRequest
from tests.unit.simulate.conftest import MakeShape, Simulate

W = WorkerId("w")


class Owner:
    """An EngineOwner that feeds an index; sequences end with their first token."""

    def __init__(self, feed: IndexFeed) -> None:
        self._feed = feed

    def drawn(self, engine: VirtualEngine, sequence: TracedSequence, tokens: int, seconds: float) -> None:
        engine.release(engine.finish(sequence))

    def pull(self, engine: VirtualEngine, order: PullOrder[TracedSequence]) -> None:
        raise AssertionError(order)

    def unneeded(self, ticket: PullParams) -> None:
        raise AssertionError(ticket)

    def adapters_changed(self, engine: VirtualEngine) -> None:
        raise AssertionError(engine)

    def cache_changed(self, engine: VirtualEngine) -> None:
        self._feed.changed(engine)


class Node:
    """One engine of 8 blocks of 16 tokens, 1,000 prompt tokens a second."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.feed = IndexFeed(self.agenda)
        timing = Timing(1000.0, 0.01)
        self.engine = VirtualEngine(W, 8, BatchLimits(4, 2048), timing, self.agenda, Owner(self.feed))

    def until(self, when: float) -> None:
        stop: list[bool] = []
        self.agenda.at(when, lambda: stop.append(True))
        while not stop:
            self.agenda.step()

    def add(self, number: int, prompt_tokens: int, *names: int) -> BlockNames:
        """names: of its runs of 32 tokens."""
        request = TracedRequest(0.0, prompt_tokens, 1, prefix_names=names, run_tokens=32)
        blocks = BlockNames(request, number, 0, 16)
        sequence = TracedSequence(RequestId(str(number)), SimLeg.WHOLE, blocks, prompt_tokens, 1)
        self.engine.add(sequence)
        return blocks

    def held(self, names: BlockNames) -> int:
        return self.feed.index.match(names.prompt()).device_blocks(W)


def test_what_is_stored_is_known_a_moment_after_the_step() -> None:
    """64 tokens take 0.064 s, and the report 0.05 s."""
    node = Node()
    names = node.add(1, 64, 7, 8)
    node.until(0.113)
    assert node.held(names) == 0
    node.until(0.115)
    assert node.held(names) == 4


def test_only_blocks_that_another_request_may_have_are_told() -> None:
    """Two blocks of the first prompt are named. Of the second one's third block only a half is there."""
    node = Node()
    names = node.add(1, 100, 7)
    node.until(1.0)
    assert len(names.prompt().block_hashes) == 2
    assert node.feed.index.device_blocks(W) == 2
    assert len(node.add(2, 40, 7, 8).prompt().block_hashes) == 2


def test_what_is_evicted_is_forgotten() -> None:
    node = Node()
    first = node.add(1, 64, 7, 8)
    node.until(1.0)
    second = node.add(2, 128, 1, 2, 3, 4)
    node.until(2.0)
    assert (node.held(first), node.held(second)) == (0, 8)


def chat(prompts: int) -> list[TracedRequest]:
    """Each of so many system prompts comes again and again, in turns that no worker count divides."""
    return [TracedRequest(0.2 * i, 560, 4, prefix_names=(i % prompts,), run_tokens=512) for i in range(70)]


def cluster(make_shape: MakeShape, routing: str) -> ClusterShape:
    return make_shape(
        deployment={"replicas": {"prefill": 3, "decode": 3}},
        scheduling={"routing": routing},
        sim={"prefill_tokens_per_second": 5000.0},
    )


@pytest.mark.parametrize("baseline", ["round_robin", "least_loaded"])
def test_kv_aware_routing_computes_fewer_prompt_tokens(
    make_shape: MakeShape, simulate: Simulate, baseline: str
) -> None:
    aware, unaware = (simulate(cluster(make_shape, name), chat(7)) for name in ("kv_aware", baseline))
    computed = [sum(line.prefill_tokens for line in report.workers) for report in (aware, unaware)]
    assert computed[0] < 0.7 * computed[1]
    assert aware.prefix_hits > unaware.prefix_hits
    for report, tokens in zip((aware, unaware), computed, strict=True):
        assert report.prefix_hits == pytest.approx(1 - tokens / (70 * 560), abs=0.01)
