"""One prompt over several KV managers, with links that answer what the test says."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import xxhash

from llmserve.core.ids import BlockHash
from llmserve.engines.store.link import StoreAnswer, StoreQuery
from llmserve.engines.store.links import PromptAnswer, StoreLinks, manager_name
from llmserve.kvstore.sharding import RUN_BLOCKS, Shard, Sharding
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

MANAGERS = 2


def chain(name: str, blocks: int) -> list[BlockHash]:
    return [BlockHash(xxhash.xxh3_128_digest(f"{name}-{number}".encode()) * 2) for number in range(blocks)]


def parts_of(keys: list[BlockHash]) -> list[Shard]:
    return Sharding({manager_name(at): 1.0 for at in range(MANAGERS)}).shards(keys)


def alternating() -> list[BlockHash]:
    """A prompt of three runs, the middle one on another manager than its neighbours."""
    names = (f"prompt-{number}" for number in range(1000))
    return next(keys for keys in (chain(name, 3 * RUN_BLOCKS) for name in names) if len(parts_of(keys)) == 3)


class PlayedLink:
    """A KV manager that holds the blocks it is given, and answers when it is let."""

    def __init__(self, name: str, notify: Callable[[], None]) -> None:
        self.name, self.notify = name, notify
        self.held: set[bytes] = set()
        self.asked: list[StoreQuery] = []
        self.settled: list[dict[str, Any]] = []
        self.is_away = self.is_closed = False
        self._answers: list[StoreAnswer] = []

    def prepare(self, ask: StoreQuery) -> None:
        if self.is_away:
            self._put(StoreAnswer(ask))
        else:
            self.asked.append(ask)

    def answer_all(self) -> None:
        asked, self.asked = self.asked, []
        for ask in asked:
            self._put(self._answer(ask))

    def take_answers(self) -> list[StoreAnswer]:
        answers, self._answers = self._answers, []
        return answers

    def settle(self, arena: str, **changes: Any) -> None:
        self.settled.append(changes)

    def close(self) -> None:
        self.is_closed = True

    def _put(self, answer: StoreAnswer) -> None:
        self._answers.append(answer)
        self.notify()

    def _answer(self, ask: StoreQuery) -> StoreAnswer:
        wanted = range(ask.have_blocks, len(ask.block_hashes))
        missing = [at for at in wanted if ask.block_hashes[at] not in self.held]
        loads = range(ask.have_blocks, missing[0] if missing else len(ask.block_hashes))
        lease = f"{self.name}:{ask.block_hashes[0][:4].hex()}" if loads and ask.load else ""
        prepared = pb.PreparePromptResponse(
            lease_id=lease, loads=_blocks(loads if ask.load else ()), stores=_blocks(missing)
        )
        return StoreAnswer(ask, f"memory of {self.name}", prepared, 100.0 + len(self.held))


def _blocks(indexes: Iterable[int]) -> list[pb.StoreBlock]:
    slot = pb.StoreSlot(length_bytes=1, generation=1)
    return [pb.StoreBlock(index=index, slots=[slot]) for index in indexes]


class Desk:
    def __init__(self) -> None:
        self.played: dict[str, PlayedLink] = {}
        self.links = StoreLinks(MANAGERS, self._make)

    def _make(self, at: int, notify: Callable[[], None]) -> PlayedLink:
        return self.played.setdefault(manager_name(at), PlayedLink(manager_name(at), notify))

    def stores(self, keys: list[BlockHash]) -> None:
        for part in parts_of(keys):
            self.played[part.manager].held.update(keys[part.start : part.stop])

    def asks(self, keys: list[BlockHash], have: int = 0, *, load: bool = True) -> None:
        self.links.prepare(StoreQuery("r", "red", keys, have, load, 0.5, 1.0))

    def answered(self) -> PromptAnswer:
        for one in self.played.values():
            one.answer_all()
        (answer,) = self.links.take_answers()
        return answer


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_prompt_is_asked_about_in_parts_and_answered_as_one(desk: Desk) -> None:
    keys = alternating()
    first, second, third = parts_of(keys)
    assert first.manager == third.manager != second.manager
    desk.stores(keys[:-5])
    desk.asks(keys, have=10)
    asked = {part.manager: desk.played[part.manager].asked for part in (first, second)}
    assert [(len(ask.block_hashes), ask.have_blocks) for ask in asked[first.manager]] == [(64, 10), (64, 0)]
    assert [(len(ask.block_hashes), ask.have_blocks) for ask in asked[second.manager]] == [(64, 0)]
    answer = desk.answered()
    assert sorted(answer.loads) == list(range(10, len(keys) - 5))
    assert sorted(answer.stores) == list(range(len(keys) - 5, len(keys)))
    assert all(answer.loads[at].manager == part.manager for part in (second, third) for at in (part.start,))
    assert {lease.manager for lease in answer.leases} == {first.manager, second.manager}
    assert len(answer.leases) == 3
    assert answer.arenas == {name: f"memory of {name}" for name in asked}
    assert answer.usable_until == 100.0 + min(len(one.held) for one in desk.played.values())


def test_loads_end_at_the_first_gap_and_leases_after_it_are_given_back(desk: Desk) -> None:
    keys = alternating()
    _, second, third = parts_of(keys)
    desk.stores(keys)
    desk.played[second.manager].held.remove(keys[70])
    desk.asks(keys)
    answer = desk.answered()
    assert sorted(answer.loads) == list(range(70))
    assert sorted(answer.stores) == [70]
    assert len(answer.leases) == 2
    released = [one for changes in desk.played[third.manager].settled for one in changes["releases"]]
    assert released == [f"{third.manager}:{keys[third.start][:4].hex()}"]


def test_one_that_is_away_is_a_partial_miss(desk: Desk) -> None:
    keys = alternating()
    first, second, third = parts_of(keys)
    desk.stores(keys[: third.start])
    desk.played[second.manager].is_away = True
    desk.asks(keys)
    answer = desk.answered()
    assert sorted(answer.loads) == list(range(first.stop))
    assert sorted(answer.stores) == list(range(third.start, len(keys))), "the others store as ever"
    assert answer.arenas[second.manager] == ""
    assert answer.usable_until < float("inf")


def test_one_that_is_away_and_has_only_what_the_device_has_costs_nothing(desk: Desk) -> None:
    keys = alternating()
    first, second, _ = parts_of(keys)
    desk.stores(keys)
    desk.played[first.manager].is_away = True
    desk.asks(keys[: second.stop], have=first.stop)
    assert sorted(desk.answered().loads) == list(range(second.start, second.stop))


def test_what_is_generated_is_asked_about_where_it_goes(desk: Desk) -> None:
    keys = alternating()
    _, second, third = parts_of(keys)
    desk.asks(keys[: third.start + 2], have=third.start, load=False)
    assert [len(ask.block_hashes) for ask in desk.played[third.manager].asked] == [2]
    assert desk.played[second.manager].asked == []
    assert sorted(desk.answered().stores) == [third.start, third.start + 1]


def test_an_answer_comes_when_all_parts_have(desk: Desk) -> None:
    keys = alternating()
    first, second, _ = parts_of(keys)
    desk.asks(keys)
    desk.played[first.manager].answer_all()
    assert desk.links.take_answers() == []
    threading.Timer(0.05, desk.played[second.manager].answer_all).start()
    began = time.monotonic()
    while not (answers := desk.links.take_answers(50.0)):
        pass
    assert len(answers) == 1
    assert 0.03 < time.monotonic() - began < 25


def test_several_prompts_at_once_are_kept_apart(desk: Desk) -> None:
    one, other = alternating(), chain("other", 100)
    desk.stores(one)
    desk.asks(one)
    desk.asks(other)
    for played in desk.played.values():
        played.answer_all()
    answers = {len(answer.ask.block_hashes): answer for answer in desk.links.take_answers()}
    assert len(answers[len(one)].loads) == len(one)
    assert len(answers[len(other)].stores) == len(other)


def test_all_links_are_closed(desk: Desk) -> None:
    desk.links.close()
    assert all(one.is_closed for one in desk.played.values())
