"""What the scheduler's half of the store asks and answers, step by step, with KV managers that are played."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)

from llmserve.core.ids import AdapterDigest, BlockHash, TransferId, WorkerId
from llmserve.core.kv_params import PushParams
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.store.block_cost import BlockCost
from llmserve.engines.store.link import StoreQuery
from llmserve.engines.store.links import LocatedBlock, PromptAnswer, StoreLease
from llmserve.engines.store.manager import StoreManager
from llmserve.engines.store.worker import StoreSlots
from llmserve.kvstore.blocks import Slot, adapter_label, store_key

BLOCK = 16
KEYS = [make_offload_key(bytes([number]) * 32, 0) for number in range(9)]


class FakeLinks:
    """KV managers that say what the test has it say, when the test has it answer."""

    def __init__(self) -> None:
        self.asks: list[StoreQuery] = []
        self.answers: list[PromptAnswer] = []
        self.settled: list[tuple[str, str, dict[str, Any]]] = []
        self.arena = "arena"
        self.homes: dict[int, str] = {}  # of blocks that "a" does not have

    def prepare(self, ask: StoreQuery) -> None:
        self.asks.append(ask)

    def take_answers(self, wait_seconds: float = 0.0) -> list[PromptAnswer]:
        answers, self.answers = self.answers, []
        return answers

    def settle(self, manager: str, arena: str, **changes: Any) -> None:
        self.settled.append((manager, arena, changes))

    def close(self) -> None:
        self.arena = ""

    def answer(
        self,
        loads: Iterable[int] = (),
        stores: Iterable[int] = (),
        usable_until: float = float("inf"),
        lease: str = "L",
    ) -> None:
        managers = sorted({self.home(index) for index in loads})
        answer = PromptAnswer(
            self.asks[-1],
            dict.fromkeys(("a", *self.homes.values()), self.arena),
            {index: self.block(index) for index in loads},
            [StoreLease(name, self.arena, lease) for name in managers],
            {index: self.block(index) for index in stores},
            usable_until,
        )
        self.answers.append(answer)

    def home(self, index: int) -> str:
        return self.homes.get(index, "a")

    def block(self, index: int) -> LocatedBlock:
        return LocatedBlock(self.home(index), self.arena, (Slot(index, 1, 1, 0),))

    def told(self, what: str, manager: str = "") -> list[Any]:
        """The values of this field, of all messages together; or of those to one manager."""
        said = [changes for name, _, changes in self.settled if not manager or name == manager]
        return [one for changes in said for one in changes.get(what, ())]


class Desk:
    """One request at a manager, driven as vLLM does."""

    def __init__(self) -> None:
        self.links = FakeLinks()
        self.manager = StoreManager(self.links, BlockCost(BLOCK))  # type: ignore[arg-type]
        self.context = ReqContext("r")

    def arrives(self, blocks: int, **params: Any) -> None:
        self.context = ReqContext("r", {"tenant": "red", **params})
        self.manager.on_new_request(self.context)
        self.grows(blocks)

    def grows(self, blocks: int) -> None:
        for number in range(blocks):
            self.context.set_offload_key_position(KEYS[number], (number + 1) * BLOCK)

    def looks_up(self, *blocks: int) -> set[LookupResult]:
        return {self.manager.lookup(KEYS[number], self.context) for number in blocks}

    def step(self, preempted: Sequence[str] = ()) -> None:
        self.manager.on_schedule_end(ScheduleEndContext([], preempted))

    def stores(self, *blocks: int) -> list[OffloadKey] | None:
        output = self.manager.prepare_store([KEYS[number] for number in blocks], self.context)
        return None if output is None else self._checked(output)

    def _checked(self, output: PrepareStoreOutput) -> list[OffloadKey]:
        assert isinstance(output.store_spec, StoreSlots)
        assert len(output.store_spec.blocks) == len(output.keys_to_store)
        return list(output.keys_to_store)

    def asked_and_answered(self, blocks: int, **answer: Any) -> None:
        self.arrives(blocks)
        self.looks_up(0)
        self.step()
        self.links.answer(**answer)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_prompt_is_asked_about_once_and_then_known(desk: Desk) -> None:
    desk.arrives(4)
    assert desk.looks_up(1, 2, 3) == {LookupResult.RETRY}
    desk.step()
    assert desk.looks_up(1) == {LookupResult.RETRY}
    (ask,) = desk.links.asks
    assert (ask.tenant, ask.have_blocks, ask.load, len(ask.block_hashes)) == ("red", 1, True, 4)
    desk.links.answer(loads=[1, 2], stores=[3])
    assert desk.looks_up(1, 2) == {LookupResult.HIT}
    assert desk.looks_up(3) == {LookupResult.MISS}


def test_a_load_keeps_its_lease_until_it_has_ended(desk: Desk) -> None:
    desk.asked_and_answered(2, loads=[0, 1])
    desk.looks_up(0, 1)
    desk.manager.prepare_load(KEYS[:2], desk.context)
    desk.manager.on_request_finished(desk.context)
    assert desk.links.told("releases") == []
    desk.manager.complete_load(KEYS[:2], desk.context)
    assert desk.links.told("releases") == ["L"]
    assert desk.links.told("corrupt") == []


def test_blocks_that_were_not_what_they_should_be_are_told(desk: Desk) -> None:
    desk.asked_and_answered(2, loads=[0, 1])
    desk.looks_up(0, 1)
    desk.manager.prepare_load(KEYS[:2], desk.context)
    desk.manager.loads_failed()
    desk.manager.complete_load(KEYS[:2], desk.context)
    assert desk.links.told("corrupt") == [bytes([0]) * 32, bytes([1]) * 32]
    assert desk.looks_up(0) == {LookupResult.MISS}, "they are computed now"


def test_what_is_reserved_is_stored_without_a_question(desk: Desk) -> None:
    desk.asked_and_answered(2, stores=[0, 1])
    assert desk.stores(0) == [KEYS[0]]
    assert desk.stores(1) == [KEYS[1]]
    desk.manager.complete_store(KEYS[:1], desk.context)
    assert [fill.block_hash for fill in desk.links.told("commits")] == [bytes([0]) * 32]
    assert len(desk.links.asks) == 1


def test_a_generated_block_is_stored_one_step_after_it_was_asked_about(desk: Desk) -> None:
    desk.asked_and_answered(1, stores=[0])
    desk.stores(0)
    desk.grows(2)
    assert desk.stores(1) is None
    assert desk.stores(1) is None, "no answer yet: nobody waits, and nobody asks again"
    assert [(ask.load, ask.have_blocks) for ask in desk.links.asks[1:]] == [(False, 1)]
    desk.links.answer(stores=[1])
    assert desk.stores(1) == [KEYS[1]]


def test_a_block_that_is_not_to_be_stored_is_not_asked_about_again(desk: Desk) -> None:
    desk.asked_and_answered(2, stores=[0])
    assert desk.stores(0, 1) == [KEYS[0]]
    assert desk.stores(1) == []
    assert len(desk.links.asks) == 1


def test_the_last_block_of_a_request_has_one_more_chance(desk: Desk) -> None:
    desk.arrives(1)
    assert desk.stores(0) is None
    desk.links.answer(stores=[0])
    assert desk.stores(0) == [KEYS[0]]  # vLLM's call for requests that have finished
    desk.manager.on_request_finished(desk.context)
    assert desk.links.told("aborts") == []


def test_a_request_that_ends_gives_back_what_it_has_not_used(desk: Desk) -> None:
    desk.asked_and_answered(3, loads=[0], stores=[1, 2])
    desk.looks_up(0)
    desk.stores(1)
    desk.manager.on_request_finished(desk.context)
    assert desk.links.told("releases") == ["L"]
    assert desk.links.told("aborts") == [bytes([2]) * 32]


def test_an_answer_for_a_request_that_has_ended_is_given_back(desk: Desk) -> None:
    desk.asked_and_answered(3, loads=[0], stores=[1, 2])
    desk.manager.on_request_finished(desk.context)
    desk.step()
    assert desk.links.told("releases") == ["L"]
    assert desk.links.told("aborts") == [bytes([1]) * 32, bytes([2]) * 32]


def test_a_preempted_request_is_asked_about_again_and_keeps_its_reservations(desk: Desk) -> None:
    desk.asked_and_answered(3, loads=[0], stores=[1, 2])
    desk.looks_up(0)
    desk.step(preempted=["r"])
    assert desk.links.told("releases") == ["L"]
    assert desk.looks_up(0) == {LookupResult.RETRY}
    desk.step()
    desk.links.answer(loads=[0, 1], lease="again")
    assert desk.looks_up(0, 1) == {LookupResult.HIT}
    assert desk.stores(2) == [KEYS[2]]


def test_what_was_answered_too_long_ago_is_asked_again(desk: Desk) -> None:
    desk.asked_and_answered(2, loads=[0], stores=[1], usable_until=0.0)
    assert desk.looks_up(0) == {LookupResult.RETRY}
    assert desk.links.told("releases") == ["L"]
    desk.step()
    assert len(desk.links.asks) == 2


def test_slots_of_a_kv_manager_that_is_gone_are_not_used(desk: Desk) -> None:
    desk.asked_and_answered(2, stores=[0])
    desk.grows(3)
    desk.looks_up(0)
    desk.links.arena = "another"
    assert desk.stores(2) is None
    desk.links.answer(stores=[2])
    assert desk.stores(0, 2) == [KEYS[2]]


def test_what_became_of_a_block_is_told_to_the_manager_that_has_it(desk: Desk) -> None:
    desk.links.homes = {1: "b", 3: "b", 4: "b"}
    desk.asked_and_answered(5, loads=[0, 1], stores=[2, 3, 4])
    desk.looks_up(0, 1)
    spec = desk.manager.prepare_load(KEYS[:2], desk.context)
    assert isinstance(spec, StoreSlots)
    assert [(part.manager, part.at) for part in spec.of_rank(0)] == [("a", (0,)), ("b", (1,))]
    desk.manager.loads_failed()
    desk.manager.complete_load(KEYS[:2], desk.context)
    desk.stores(2, 3)
    desk.manager.complete_store(KEYS[2:4], desk.context)
    desk.manager.on_request_finished(desk.context)
    for manager, loaded, stored, aborts in (("a", 0, 2, []), ("b", 1, 3, [bytes([4]) * 32])):
        assert desk.links.told("releases", manager) == ["L"]
        assert desk.links.told("corrupt", manager) == [bytes([loaded]) * 32]
        assert [fill.block_hash[0] for fill in desk.links.told("commits", manager)] == [stored]
        assert desk.links.told("aborts", manager) == aborts


def test_a_manager_that_went_takes_only_its_own_blocks_along(desk: Desk) -> None:
    desk.links.homes = {1: "b"}
    desk.asked_and_answered(2, stores=[0, 1])
    desk.looks_up(0)
    desk.grows(3)
    assert desk.stores(2) is None
    away = PromptAnswer(desk.links.asks[-1], {"a": "arena", "b": ""})
    desk.links.answers.append(away)
    assert desk.stores(0, 1) == [KEYS[0]]


def test_of_a_prompt_that_is_handed_over_only_what_follows_is_stored(desk: Desk) -> None:
    card = PushParams(TransferId("t"), WorkerId("w"), 1, ("h:1",), 2 * BLOCK + 3, continues=True)
    desk.arrives(3, **card.to_params())
    assert desk.looks_up(0, 1, 2) == {LookupResult.MISS}
    assert desk.stores(0, 1) == []
    assert desk.links.asks == []
    assert desk.stores(0, 1, 2) is None
    assert desk.links.asks[0].have_blocks == 2


def test_the_blocks_of_an_adapter_carry_its_label(desk: Desk) -> None:
    """In each message of their life, also when the request has ended."""
    adapter = AdapterDigest("a1" * 32)
    names = [store_key(BlockHash(bytes([number]) * 32), adapter_label(adapter)) for number in range(4)]
    desk.arrives(4, adapter=adapter)
    desk.looks_up(0)
    desk.step()
    assert desk.links.asks[0].block_hashes == names
    desk.links.answer(loads=[0, 1], stores=[2, 3])
    assert desk.looks_up(0, 1) == {LookupResult.HIT}
    desk.manager.prepare_load(KEYS[:2], desk.context)
    desk.manager.loads_failed()
    desk.manager.complete_load(KEYS[:2], desk.context)
    assert desk.links.told("corrupt") == names[:2]
    assert desk.stores(2) == [KEYS[2]]
    desk.manager.on_request_finished(desk.context)
    desk.manager.complete_store(KEYS[2:3], desk.context)
    assert [fill.block_hash for fill in desk.links.told("commits")] == names[2:3]
    assert desk.links.told("aborts") == names[3:]


def test_without_a_tenant_there_is_no_store(desk: Desk) -> None:
    desk.arrives(2, tenant="")
    assert desk.looks_up(0, 1) == {LookupResult.MISS}
    assert desk.stores(0, 1) == []
    assert desk.links.asks == []


def test_a_prompt_waits_no_longer_than_it_takes_to_compute(desk: Desk) -> None:
    desk.manager.pace.begins(BLOCK, 0.0)
    desk.manager.pace.ended(0.5)
    desk.arrives(3)
    desk.looks_up(1)
    desk.step()
    (ask,) = desk.links.asks
    assert ask.compute_seconds == pytest.approx(0.5)
    assert ask.timeout_seconds == pytest.approx(1.0)


# -- a model with two groups of layers, of which the second is counted

GROUPS = [[make_offload_key(bytes([number]) * 32, group) for number in range(9)] for group in (0, 1)]


@pytest.fixture
def hybrid(desk: Desk) -> Desk:
    desk.manager.groups = KvGroups(BLOCK, windows=(2 * BLOCK, 0), counted=1)
    desk.context = ReqContext("r", {"tenant": "red"})
    desk.manager.on_new_request(desk.context)
    for keys in GROUPS:
        for number in range(3):
            desk.context.set_offload_key_position(keys[number], (number + 1) * BLOCK)
    return desk


def of_both(hybrid: Desk, *blocks: int) -> set[LookupResult]:
    return {hybrid.manager.lookup(keys[number], hybrid.context) for keys in GROUPS for number in blocks}


def answer_each(hybrid: Desk, answered: int = 0, **answer: Any) -> None:
    """The answer to each question after the first ones, whether it was asked before or comes of an answer."""
    while answered < len(hybrid.links.asks):
        asks, hybrid.links.asks = hybrid.links.asks, [hybrid.links.asks[answered]]
        hybrid.links.answer(**answer)
        hybrid.links.asks = asks
        of_both(hybrid, 0)
        answered += 1


def test_each_group_is_asked_about_by_itself(hybrid: Desk) -> None:
    assert of_both(hybrid, 1, 2) == {LookupResult.RETRY}
    hybrid.step()
    (counted,) = hybrid.links.asks
    assert counted.block_hashes == [bytes([number]) * 32 for number in range(3)]
    hybrid.links.answer(loads=[1, 2])
    assert of_both(hybrid, 1, 2) == {LookupResult.RETRY}, "one answer is missing"
    _, windowed = hybrid.links.asks
    assert not set(windowed.block_hashes) & set(counted.block_hashes)
    assert [(ask.have_blocks, len(ask.block_hashes)) for ask in (windowed, counted)] == [(1, 3), (1, 3)]
    hybrid.links.answer(loads=[2])
    assert of_both(hybrid, 2) == {LookupResult.HIT}
    assert of_both(hybrid, 1) == {LookupResult.HIT, LookupResult.MISS}


@pytest.mark.parametrize(
    ("tokens", "loads", "first_asked"),
    [(149, 9, 7), (145, 9, 7), (144, 9, 6), (200, 5, 3), (200, 2, 0), (200, 1, 0), (200, 0, 0)],
)
def test_of_a_window_its_blocks_at_the_end_of_the_loads_are_asked_about(
    hybrid: Desk, tokens: int, loads: int, first_asked: int
) -> None:
    """Two. Those before them are not stored, and are no gap. A prompt's last token is computed: where a block
    ends with it, the window before it ends a block earlier."""
    hybrid.manager.note_length("r", tokens)
    for keys in GROUPS:
        for number in range(9):
            hybrid.context.set_offload_key_position(keys[number], (number + 1) * BLOCK)
    of_both(hybrid, 0)
    hybrid.step()
    hybrid.links.answer(loads=range(loads))
    of_both(hybrid, 0)
    assert [ask.have_blocks for ask in hybrid.links.asks] == [0, first_asked]


def test_what_a_window_needs_is_found_although_nothing_is_stored_before(hybrid: Desk) -> None:
    for keys in GROUPS:
        for number in range(9):
            hybrid.context.set_offload_key_position(keys[number], (number + 1) * BLOCK)
    of_both(hybrid, 0)
    hybrid.step()
    hybrid.links.answer(loads=range(7), stores=[7, 8])
    of_both(hybrid, 0)
    hybrid.links.answer(loads=[5, 6], stores=[7, 8])
    assert of_both(hybrid, 5, 6) == {LookupResult.HIT}
    assert of_both(hybrid, 7, 8) == {LookupResult.MISS}
    output = hybrid.manager.prepare_store([keys[8] for keys in GROUPS], hybrid.context)
    assert output is not None
    assert list(output.keys_to_store) == [keys[8] for keys in GROUPS]


def test_the_blocks_of_all_groups_are_loaded_and_stored_under_hashes_of_their_own(hybrid: Desk) -> None:
    of_both(hybrid, 0, 1)
    hybrid.step()
    answer_each(hybrid, loads=[0, 1], stores=[2])
    counted, windowed = [list(ask.block_hashes) for ask in hybrid.links.asks]
    loaded = [GROUPS[0][1], *GROUPS[1][:2]]
    spec = hybrid.manager.prepare_load(loaded, hybrid.context)
    assert isinstance(spec, StoreSlots)
    assert [block.slots[0].offset for block in spec.blocks] == [1, 0, 1]
    hybrid.manager.loads_failed({"r"})
    hybrid.manager.complete_load(loaded, hybrid.context)
    assert hybrid.links.told("corrupt") == [windowed[1], *counted[:2]]
    written = [GROUPS[0][2], GROUPS[1][2]]
    output = hybrid.manager.prepare_store(written, hybrid.context)
    assert output is not None
    assert list(output.keys_to_store) == written
    hybrid.manager.complete_store(written, hybrid.context)
    assert [fill.block_hash for fill in hybrid.links.told("commits")] == [windowed[2], counted[2]]


def test_a_generated_block_is_asked_about_in_each_group(hybrid: Desk) -> None:
    of_both(hybrid, 0)
    hybrid.step()
    answer_each(hybrid)
    new = [keys[3] for keys in GROUPS]
    for key in new:
        hybrid.context.set_offload_key_position(key, 4 * BLOCK)
    assert hybrid.manager.prepare_store(new, hybrid.context) is None
    assert [(ask.have_blocks, ask.load) for ask in hybrid.links.asks[2:]] == [(3, False), (3, False)]
    answer_each(hybrid, 2, stores=[3])
    output = hybrid.manager.prepare_store(new, hybrid.context)
    assert output is not None
    assert list(output.keys_to_store) == new


def test_a_load_of_another_request_that_failed_is_no_failure_of_this_one(desk: Desk) -> None:
    desk.asked_and_answered(1, loads=[0])
    desk.looks_up(0)
    desk.manager.prepare_load(KEYS[:1], desk.context)
    desk.manager.loads_failed({"another"})
    desk.manager.complete_load(KEYS[:1], desk.context)
    assert desk.links.told("corrupt") == []
