"""What versions that are gone have left in the KV store is dropped, once nobody can use them any more."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.leftovers import AdapterLeftovers
from llmserve.router.adapters.lifecycle import LINGER_SECONDS
from tests.unit.router.adapters.conftest import MODEL, World, digest_of

ONE, TWO = digest_of("one"), digest_of("two")


class Watch:
    """A KvWatch that keeps what it is asked. done: how its KV managers answer."""

    def __init__(self) -> None:
        self.done: dict[AdapterDigest, Callable[[], object]] = {}

    def drop_adapter(self, digest: AdapterDigest, dropped: Callable[[], object]) -> None:
        assert digest not in self.done, "asked once"
        self.done[digest] = dropped

    def keep_adapter(self, digest: AdapterDigest) -> None:
        del self.done[digest]

    def answer(self, digest: AdapterDigest) -> None:
        self.done.pop(digest)()


@pytest.fixture
def watch() -> Watch:
    return Watch()


def leftovers(world: World, watch: Watch) -> AdapterLeftovers:
    return AdapterLeftovers(world.book.lifecycle, cast("Any", watch))


def gone(world: World, name: str) -> None:
    world.book.unload(MODEL, name)
    world.round(LINGER_SECONDS, rounds=3)


def test_it_is_asked_for_when_the_version_is_gone_and_until_all_have_answered(
    world: World, watch: Watch
) -> None:
    drops = leftovers(world, watch)
    world.start("decode-0")
    world.loaded("sql", "one")
    world.loaded("chat", "two")
    world.book.unload(MODEL, "sql")
    world.round(1.0)
    drops.look()
    assert watch.done == {}, "it is draining"
    world.round(LINGER_SECONDS, rounds=2)
    before = world.book.lifecycle.version
    drops.look()
    drops.look()
    assert list(watch.done) == [ONE]
    watch.answer(ONE)
    drops.look()
    assert watch.done == {}
    assert not world.book.lifecycle.table.leftovers
    assert world.book.lifecycle.version > before, "it is saved"
    gone(world, "chat")
    drops.look()
    assert list(watch.done) == [TWO]


def test_a_swap_leaves_the_version_before_it(world: World, watch: Watch) -> None:
    drops = leftovers(world, watch)
    world.start("decode-0")
    world.loaded("sql", "one")
    world.loaded("sql", "two")
    world.round(LINGER_SECONDS, rounds=3)
    drops.look()
    assert list(watch.done) == [ONE]


def test_a_version_that_another_name_has_is_not_left(world: World, watch: Watch) -> None:
    world.start("decode-0")
    world.loaded("sql", "one")
    world.loaded("same", "one")
    gone(world, "sql")
    assert not world.book.lifecycle.table.leftovers
    gone(world, "same")
    assert world.book.lifecycle.table.leftovers == {ONE}


def test_a_version_that_is_loaded_again_is_kept(world: World, watch: Watch) -> None:
    drops = leftovers(world, watch)
    world.start("decode-0")
    world.loaded("sql", "one")
    gone(world, "sql")
    drops.look()
    assert list(watch.done) == [ONE]
    world.loaded("again", "one")
    drops.look()
    assert watch.done == {}
    gone(world, "again")
    drops.look()
    assert list(watch.done) == [ONE], "and dropped when it is gone once more"


def test_the_next_leader_asks_for_what_was_not_answered(world: World, watch: Watch) -> None:
    drops = leftovers(world, watch)
    world.start("decode-0")
    world.loaded("sql", "one")
    gone(world, "sql")
    drops.look()
    saved = world.book.snapshot()
    assert saved, "there is something to save, although there is no adapter"
    drops.close()
    drops.close()
    assert watch.done == {}
    world.begin_term(saved)
    drops = leftovers(world, watch)
    drops.look()
    assert list(watch.done) == [ONE]
    watch.answer(ONE)
    assert world.book.snapshot() == ""
