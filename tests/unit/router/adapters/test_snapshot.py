"""What another router is told of the book."""

import json
from typing import Any

import pytest

from llmserve.core.adapters import AdapterState, AdapterTier
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.snapshot import AdapterSnapshot
from tests.unit.router.adapters.conftest import MODEL, World, digest_of

WISH = AdapterWish("sql", "dir:/sql", AdapterTier.DRAM, pinned=True)


def _snapshot() -> AdapterSnapshot:
    registration = Registration(
        7, MODEL, WISH, AdapterState.DRAINING, digest_of("one"), 8, 100, "NotFound", "gone", released=True
    )
    return AdapterSnapshot(9, (registration,), {MODEL: (WISH,)})


def test_it_comes_back_whole() -> None:
    restored = AdapterSnapshot.from_json(_snapshot().to_json())
    (registration,), (before,) = restored.registrations, _snapshot().registrations
    assert registration.saved() == before.saved()
    assert (registration.state, registration.released) == (AdapterState.DRAINING, True)
    assert registration.wish == WISH
    assert (restored.last_number, restored.declared) == (9, {MODEL: (WISH,)})


def _changed(**changes: Any) -> str:
    return json.dumps({**json.loads(_snapshot().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_changed(version=2), "it has version 2, and this release knows 1"),
        ("{}", "it has version None"),
        ("[1]", "it is no snapshot of adapters"),
        ("null", "it is no snapshot of adapters"),
        ("{", "Expecting"),
        (_changed(registrations=None), "it is no snapshot of adapters"),
        (_changed(registrations=[{"number": 1}]), "it is no snapshot of adapters"),
        (
            _changed(registrations=[{**json.loads(_snapshot().to_json())["registrations"][0], "state": "x"}]),
            "x",
        ),
        (_changed(declared=[]), "it is no snapshot of adapters"),
    ],
)
def test_what_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AdapterSnapshot.from_json(text)


def test_a_book_without_adapters_saves_nothing(world: World) -> None:
    assert world.book.snapshot() == ""
    world.start("decode-0")
    world.load("sql", "one")
    assert world.book.snapshot() != ""
    world.book.unload(MODEL, "sql")
    world.round(rounds=3)
    assert world.book.snapshot() == ""


def test_the_manifest_s_adapters_are_saved_though_an_operator_unloaded_them(world: World) -> None:
    world.book.declare(MODEL, (WISH,))
    world.book.unload(MODEL, "sql")
    restored = AdapterSnapshot.from_json(world.book.snapshot())
    assert (restored.declared, restored.registrations) == ({MODEL: (WISH,)}, ())


def test_a_name_that_the_manifest_has_no_more_is_saved_as_such(world: World) -> None:
    """Although its adapter stays, since an operator has loaded another one under this name."""
    world.start("decode-0")
    world.book.declare(MODEL, (AdapterWish("a", "dir:/declared"),))
    world.loaded("a", "one")
    world.round(rounds=10)
    assert AdapterSnapshot.from_json(world.book.snapshot()).declared[MODEL]
    world.book.declare(MODEL, ())
    assert not AdapterSnapshot.from_json(world.book.snapshot()).declared[MODEL]


def test_one_model_without_adapters_loses_nothing_of_the_others(world: World) -> None:
    world.book.declare(MODEL, (AdapterWish("a", "dir:/a"),))
    world.book.declare("other", ())
    world.book.unload(MODEL, "a")
    world.round()
    assert list(world.book) == []
    assert AdapterSnapshot.from_json(world.book.snapshot()).declared[MODEL]


def test_the_same_text_until_something_changes(world: World) -> None:
    world.start("decode-0")
    registration = world.load("sql", "one")
    text = world.book.snapshot()
    world.workers["decode-0"].fetches = False
    world.round(rounds=3)
    assert world.book.snapshot() is text
    world.book.keep(registration, AdapterTier.DRAM, pinned=False)
    assert world.book.snapshot() != text
    assert AdapterSnapshot.from_json(world.book.snapshot()).registrations[0].wish.tier is AdapterTier.DRAM


class TestTakeOver:
    def test_names_are_there_at_once(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        first = world.loaded("sql", "one")
        world.begin_term(world.book.snapshot())
        assert world.names() == {"sql": digest_of("one")}
        world.round()
        (registration,) = world.book
        assert (registration.number, registration.state) == (first.number, AdapterState.READY)
        assert [order.number for order in world.ordered("decode-0")] == [first.number]

    def test_numbers_go_on_after_the_last_one(self, world: World) -> None:
        last = [world.load(f"a{number}") for number in range(1500)][-1]
        world.begin_term(world.book.snapshot())
        assert world.load("sql").number == last.number + 1 > world.term

    def test_a_load_goes_on(self, world: World) -> None:
        world.start("decode-0", fetches=False)
        world.load("sql", "one")
        world.heartbeat("decode-0")
        world.begin_term(world.book.snapshot())
        world.workers["decode-0"].fetches = True
        world.round(rounds=3)
        assert world.names() == {"sql": digest_of("one")}

    def test_a_call_that_is_repeated_joins_it(self, world: World) -> None:
        world.start("decode-0")
        number = world.load("sql", "one").number
        world.begin_term(world.book.snapshot())
        assert world.load("sql").number == number

    def test_what_failed_is_tried_again(self, world: World) -> None:
        world.start("decode-0")
        world.sources.wrong.add("dir:/sql")
        world.load("sql", "one")
        world.round(rounds=3)
        world.sources.wrong.clear()
        world.begin_term(world.book.snapshot())
        (registration,) = world.book
        assert (registration.state, registration.error) == (AdapterState.FETCHING, "")
        world.round(rounds=3)
        assert world.names() == {"sql": digest_of("one")}

    def test_what_was_let_go_is_not_fetched_again(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        world.workers["decode-0"].running[digest_of("one")] = 1
        world.book.unload(MODEL, "sql")
        world.round(rounds=8)
        world.begin_term(world.book.snapshot())
        world.round(rounds=8)
        assert len(world.ordered("decode-0")) == 1, "a request has it"
        world.workers["decode-0"].running.clear()
        world.round(rounds=5)
        (order,) = world.ordered("decode-0")
        assert order.number == registration.number
        world.round()
        assert world.ordered("decode-0") == []
        world.begin_term(world.book.snapshot())
        assert world.ordered("decode-0") == []
        world.round(rounds=2)
        assert list(world.book) == []

    def test_without_a_snapshot_the_manifest_is_what_there_is(self, world: World) -> None:
        world.start("decode-0")
        world.sources.content["dir:/a"] = "one"
        world.declared = (AdapterWish("a", "dir:/a"),)
        world.loaded("sql", "two")
        world.begin_term(None)
        world.round(rounds=3)
        assert world.names() == {"a": digest_of("one")}
        assert [report.digest for report in world.workers["decode-0"].reports.values()] == [digest_of("one")]
