"""Names of adapters when there are several models: each is of one of them."""

import pytest

from llmserve.core.adapters import AdapterState
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.router.adapters.registration import AdapterWish
from tests.unit.router.adapters.conftest import MODEL, World

OTHER = "other"


@pytest.fixture
def world(world: World) -> World:
    """One with a model that has workers, and a model that has none yet."""
    world.start("decode-0")
    world.book.declare(OTHER, ())
    return world


def test_a_name_of_another_model_s_adapter_is_refused(world: World) -> None:
    world.load("sql", "one")
    with pytest.raises(InvalidRequest, match="sql is the name of an adapter of model m; choose another one"):
        world.book.load(OTHER, AdapterWish("sql", "dir:/other"))
    assert world.book.load(OTHER, AdapterWish("sql-2", "dir:/other")).model == OTHER
    assert world.load("sql", "two").model == MODEL


def test_a_name_is_free_again_once_it_is_unloaded(world: World) -> None:
    world.loaded("sql", "one")
    world.admit("r", world.names()["sql"])
    assert world.book.unload(MODEL, "sql").state is AdapterState.DRAINING
    assert world.book.load(OTHER, AdapterWish("sql", "dir:/other")).model == OTHER


def test_the_name_alone_says_of_which_model_an_adapter_is(world: World) -> None:
    mine = world.loaded("sql", "one")
    others = world.book.load(OTHER, AdapterWish("poems", "dir:/other"))
    assert world.book.find("", "sql") is mine
    assert world.book.find("", "poems") is others
    assert world.book.unload("", "poems") is others
    with pytest.raises(NotFound, match="no adapter of model m has the name poems"):
        world.book.find(MODEL, "poems")


@pytest.mark.parametrize("call", ["find", "unload"])
def test_a_name_that_no_model_has(world: World, call: str) -> None:
    world.load("sql", "one")
    with pytest.raises(NotFound, match=r"no adapter has the name sqll; did you mean 'sql'\?"):
        getattr(world.book, call)("", "sqll")


def test_only_names_of_the_model_that_stay_are_proposed(world: World) -> None:
    world.loaded("sql-a", "one")
    world.book.load(OTHER, AdapterWish("sql-b", "dir:/other"))
    leaving = world.loaded("sql-c", "three")
    world.admit("r", leaving.digest)
    world.book.unload(MODEL, "sql-c")
    with pytest.raises(NotFound, match=r"has the name sql-b; did you mean 'sql-a'\?"):
        world.book.find(MODEL, "sql-b")
    with pytest.raises(NotFound, match=r"has the name sql-c; did you mean 'sql-a'\?"):
        world.book.find(MODEL, "sql-c")


def test_the_manifest_takes_a_name_from_another_model(world: World) -> None:
    ready, kept = world.loaded("sql", "one"), world.loaded("kept", "two")
    world.book.declare(OTHER, (AdapterWish("sql", "dir:/other"),))
    world.round()
    assert ready.leaving
    assert not kept.leaving
    assert world.book.find("", "sql").model == OTHER
    assert world.names() == {"kept": kept.digest}


def test_whoever_waits_for_a_name_that_the_manifest_takes_is_told(world: World) -> None:
    waiting = world.load("sql", "one")
    world.book.declare(OTHER, (AdapterWish("sql", "dir:/other"),))
    assert waiting.error == "InvalidRequest"
    assert waiting.message == "the manifest gives the name sql to model other"
