"""What the controller makes of the prefix index: costs, predictions, prefetches, proof."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import (
    AdapterDigest,
    ApiserverId,
    BlockHash,
    RequestId,
    TenantId,
    WorkerId,
    background_of,
)
from llmserve.core.request import Outcome
from llmserve.kvstore.directory.directory import Holder, KvTier
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, CachedTokens, Effect, More, Prefetch, RequestEnded, RequestPlaced
from llmserve.router.placement.planner import Disaggregate, PlacementRequest
from llmserve.router.prefix.hash_check import MISSES_THAT_TELL, HashState
from llmserve.router.prefix.index import HashedPrompt, PrefixIndex, Stretch
from llmserve.router.sessions import RouterSession
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.worker import WorkerSpec

HASHES = [BlockHash(bytes([number])) for number in range(8)]
PROMPT_TOKENS = 8 * 16 + 5
WORKER = WorkerId("aggregated-0")
TENANT = TenantId("t")


@dataclass
class World:
    clock: VirtualClock
    index: PrefixIndex
    controller: Controller
    session: RouterSession

    def tell(self, told: DirectoryUpdate) -> None:
        assert self.index.apply("m", told)

    def device(self, blocks: int, worker: str = WORKER) -> None:
        self.tell(DirectoryUpdate(Holder(worker), 1, is_snapshot=True, stored=tuple(HASHES[:blocks])))

    def admit(
        self,
        name: str,
        hashes: list[BlockHash] = HASHES,
        adapter: AdapterDigest = BASE_MODEL,
        tenant: TenantId = TENANT,
    ) -> list[Effect]:
        placement = PlacementRequest("m", PROMPT_TOKENS, adapter=adapter)
        prompt = HashedPrompt(hashes, 16 if hashes else 0)
        admit = Admit(RequestId(name), tenant, placement, prompt=prompt)
        effects = self.controller.requests.admit(self.session, admit)
        self.controller.check_integrity()
        return effects

    def done(self, name: str, cached: int | None = None) -> list[Effect]:
        return self.controller.requests.done(self.session, RequestId(name), Outcome.COMPLETED, 5, cached)

    def waiting(self) -> list[int]:
        return [request.cached_tokens for request in self.controller._queue.waiting()]


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(make_spec: Callable[..., WorkerSpec], clock: VirtualClock) -> MakeWorld:
    def make(*workers: str, slots: int = 1, prefetch: bool = True) -> World:
        index = PrefixIndex()
        index.begin("m")
        settings = RouterSettings(
            prefetch_on_prefix=prefetch, expiry_seconds=1e6, disaggregate=Disaggregate.ALWAYS
        )
        controller = Controller(settings, clock, random.Random(1), index)
        for worker in workers or (WORKER,):
            controller.register(make_spec(worker, slots=slots))
        session, _ = controller.open_session(ApiserverId("api"), ())
        return World(clock, index, controller, session)

    return make


def placed(effects: list[Effect]) -> list[tuple[str, int]]:
    return [
        (one.request_id, one.predicted_cached_tokens) for one in effects if isinstance(one, RequestPlaced)
    ]


def test_what_is_expected_to_be_cached_is_told_with_the_placement(make_world: MakeWorld) -> None:
    world = make_world(slots=2)
    world.device(3)
    assert placed(world.admit("a")) == [("a", 3 * 16)]
    assert placed(world.admit("without", [])) == [("without", 0)]


def test_it_is_of_the_worker_that_runs_the_prefill(make_world: MakeWorld) -> None:
    world = make_world("prefill-0", "decode-0")
    world.device(3, "prefill-0")
    world.device(8, "decode-0")
    assert placed(world.admit("a")) == [("a", 3 * 16)]


def test_what_is_cached_costs_its_tenant_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    world.admit("runs")
    world.device(3)
    world.admit("waits")
    assert world.waiting() == [3 * 16]


def test_a_request_that_waited_is_looked_for_again_when_its_turn_comes(make_world: MakeWorld) -> None:
    world = make_world()
    world.admit("runs")
    world.admit("waits")
    world.device(3)
    world.clock.advance(1.01)
    assert placed(world.done("runs")) == [("waits", 3 * 16)]


def test_one_that_waited_for_a_second_is_not(make_world: MakeWorld) -> None:
    world = make_world()
    world.admit("runs")
    world.admit("waits")
    world.device(3)
    world.clock.advance(1.0)
    assert placed(world.done("runs")) == [("waits", 0)]


@pytest.mark.parametrize(("found", "more"), [(48, More.EXACT), (16, More.EXPECTED), (96, More.FOUND)])
def test_what_was_cached_is_compared_with_what_was_expected(
    make_world: MakeWorld, found: int, more: More
) -> None:
    world = make_world()
    world.device(3)
    world.admit("a")
    (ended,) = world.done("a", found)
    assert isinstance(ended, RequestEnded)
    assert ended.cached == CachedTokens(PROMPT_TOKENS, 48, found)
    assert ended.cached.more is more


def test_what_was_cached_is_counted_by_prefix_and_in_all(make_world: MakeWorld) -> None:
    world = make_world(slots=9)
    prefixes = world.controller.prefixes
    world.admit("new")
    assert prefixes.hot.hottest() == []
    world.device(3)
    world.admit("a", tenant=background_of(TENANT))
    world.admit("b", HASHES[:2])
    found = {one.block_hash: (one.tenant, one.blocks, one.tokens) for one in prefixes.hot.hottest()}
    assert found == {HASHES[2]: (TENANT, 3, 48), HASHES[1]: (TENANT, 2, 32)}
    world.done("a", 48)
    world.done("b")
    assert (prefixes.prompt_tokens, prefixes.cached_tokens) == (PROMPT_TOKENS, 48)


def test_without_word_of_an_engine_nothing_is_compared(make_world: MakeWorld) -> None:
    world = make_world()
    world.admit("a")
    world.admit("waits")
    (ended, *_) = world.done("a")
    assert isinstance(ended, RequestEnded)
    assert ended.cached is None


def test_what_a_waiting_request_has_below_dram_is_to_come_up(make_world: MakeWorld) -> None:
    world = make_world()
    world.tell(DirectoryUpdate(Holder("m/disk", KvTier.NVME), 1, is_snapshot=True, stored=tuple(HASHES[:6])))
    assert [type(one) for one in world.admit("runs")] == [RequestPlaced]  # it need not wait
    (effect,) = world.admit("waits")
    assert isinstance(effect, Prefetch)
    assert (effect.worker_id, effect.tenant, effect.stretches) == (WORKER, "t", [Stretch("m", 0, 6)])
    assert 0 < effect.wait_seconds <= 60
    assert effect.adapter == BASE_MODEL


def test_a_line_of_a_batch_finds_the_blocks_of_its_tenant(make_world: MakeWorld) -> None:
    world = make_world()
    world.tell(DirectoryUpdate(Holder("m/disk", KvTier.NVME), 1, is_snapshot=True, stored=tuple(HASHES[:6])))
    world.admit("runs")
    (effect,) = world.admit("waits", tenant=background_of(TENANT))
    assert isinstance(effect, Prefetch)
    assert effect.tenant == "t"


def test_its_blocks_are_those_of_its_adapter(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterBook, "refusal", lambda book, model, digest: None)
    world, digest = make_world(), AdapterDigest("a1" * 32)
    world.tell(DirectoryUpdate(Holder("m/disk", KvTier.NVME), 1, is_snapshot=True, stored=tuple(HASHES[:6])))
    world.admit("runs")
    (effect,) = world.admit("waits", adapter=digest)
    assert isinstance(effect, Prefetch)
    assert effect.adapter == digest


@pytest.mark.parametrize("why", ["the knob is off", "all is in DRAM", "nothing is stored", "no hashes"])
def test_nothing_is_asked_for_when(make_world: MakeWorld, why: str) -> None:
    world = make_world(prefetch=why != "the knob is off")
    tier = KvTier.DRAM if why == "all is in DRAM" else KvTier.NVME
    if why != "nothing is stored":
        world.tell(DirectoryUpdate(Holder("m/x", tier), 1, is_snapshot=True, stored=tuple(HASHES[:6])))
    world.admit("runs")
    assert world.admit("waits", [] if why == "no hashes" else HASHES) == []


def test_prompts_that_are_never_found_are_noticed_in_time(make_world: MakeWorld) -> None:
    world = make_world()
    world.tell(DirectoryUpdate(Holder(WORKER), 1, is_snapshot=True, stored=(BlockHash(b"other"),)))
    for number in range(MISSES_THAT_TELL):
        world.admit(str(number))
        world.done(str(number))
        wake = world.controller.next_wake()
        assert wake is not None
        world.clock.advance(wake - world.clock.now())
        world.controller.tick()
    assert world.controller.prefixes.hash_check.state is HashState.DIFFERS


def test_the_first_block_of_a_prompt_is_proof(make_world: MakeWorld) -> None:
    """Engines evict it last."""
    world = make_world()
    world.device(1)
    world.admit("a")
    world.done("a")
    world.clock.advance(2.0)
    world.controller.tick()
    assert world.controller.prefixes.hash_check.state is HashState.MATCHES


def test_nothing_is_expected_while_no_kv_manager_is_followed(make_world: MakeWorld) -> None:
    world = make_world()
    world.index.drop("m")
    assert placed(world.admit("a")) == [("a", 0)]
    world.done("a")
    assert world.controller.prefixes.hash_check.next_due() is None
