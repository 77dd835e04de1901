"""The book of models: loads, unloads and swaps, whatever happens meanwhile."""

from collections.abc import Callable

import pytest

from llmserve.config.wanted_models import AnsweringModels, ModelState
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest, NotFound, Unavailable
from llmserve.router.models.book import LINGER_SECONDS, ON_KUBERNETES, USE_CHECK_SECONDS, ModelBook
from llmserve.router.models.snapshot import ModelBookSnapshot
from tests.unit.router.models.conftest import DRAIN_SECONDS, ModelWorld, entry

REGISTERED, FETCHING, FETCHED = ModelState.REGISTERED, ModelState.FETCHING, ModelState.FETCHED
STARTING = ModelState.STARTING
READY, DRAINING, GONE, FAILED = ModelState.READY, ModelState.DRAINING, ModelState.GONE, ModelState.FAILED


def test_a_model_goes_from_its_load_to_ready(world: ModelWorld) -> None:
    b = world.load("b")
    assert b.state is REGISTERED
    assert world.orders()["b"].may_start
    assert world.served() == ["a"], "nobody could tokenize its requests yet"
    world.say("b", FETCHING, detail="42 %")
    assert (b.state, b.detail) == (FETCHING, "42 %")
    assert world.served() == ["a"]
    world.say("b", STARTING, directory="/models/b")
    assert world.served() == ["a", "b"], "its requests wait for its engines"
    assert [(one.directory, one.ready) for one in world.book.served()] == [
        ("/models/a", True),
        ("/models/b", False),
    ]
    world.say("b", READY, directory="/models/b")
    assert b.state is STARTING, "an apiserver does not take its requests yet"
    world.answer("a", "b")
    assert b.state is READY
    assert [one.ready for one in world.book.served()] == [True, True]


def test_every_apiserver_that_says_anything_has_to_take_its_requests(world: ModelWorld) -> None:
    world.apiservers |= {"api-1": AnsweringModels(frozenset({"a"})), "api-2": None}
    b = world.load("b")
    world.answer("a", "b")
    world.say("b", READY)
    assert b.state is STARTING
    world.answer("a", "b", apiserver="api-1")
    assert b.state is READY


def test_an_apiserver_that_leaves_is_waited_for_no_more(world: ModelWorld) -> None:
    world.apiservers["api-1"] = AnsweringModels()
    b = world.load("b")
    world.answer("a", "b")
    world.say("b", READY)
    del world.apiservers["api-1"]
    world.book.follow_apiservers()
    assert b.state is READY


def test_a_model_that_an_apiserver_cannot_take_has_failed(world: ModelWorld) -> None:
    b = world.load("b")
    world.say("b", STARTING)
    world.answer("a", b="no tokenizer")
    assert (b.state, b.error) == (FAILED, "StartFailed")
    assert "no tokenizer" in b.message
    assert "b" not in world.orders()


def test_the_manifest_s_model_stays_whatever_an_apiserver_says(make_world: Callable[..., ModelWorld]) -> None:
    world = make_world()
    world.say("a", STARTING)
    world.answer(a="no tokenizer")
    assert world.state("a") is STARTING


# -- loads


def test_a_load_while_it_is_loading_joins(world: ModelWorld) -> None:
    b = world.load("b")
    assert world.load("b") is b
    world.say("b", FETCHING)
    assert world.load("b") is b
    world.become_ready("a", "b")
    assert world.load("b") is b


def test_a_swap_that_is_asked_for_again_joins(world: ModelWorld) -> None:
    b = world.load("b", swap="a")
    assert world.load("b", swap="a") is b
    assert world.load("b") is b
    world.say("b", STARTING)
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    world.carry_out()
    assert world.load("b", swap="a") is b, "a is gone"


def test_a_swap_that_is_over_joins_and_another_one_is_another_load(world: ModelWorld) -> None:
    b = world.load("b", swap="a")
    world.say("b", STARTING)
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    world.carry_out()
    world.become_ready("b")
    assert world.load("b", swap="a") is b
    world.load("c")
    with pytest.raises(InvalidRequest, match="model b is ready"):
        world.load("b", swap="c")


def test_a_name_has_one_entry(world: ModelWorld) -> None:
    world.load("b")
    with pytest.raises(InvalidRequest, match="model b is registered, from hub/b: unload it before"):
        world.book.load("b", entry("b", "hub/other"))


def test_a_name_that_is_leaving_comes_again_later(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.book.unload("b")
    with pytest.raises(Unavailable, match="model b is being unloaded"):
        world.load("b")


def test_a_failed_load_can_be_tried_again(world: ModelWorld) -> None:
    first = world.load("b")
    world.say("b", FAILED, error="ModelNotFound", message="No space left on device")
    assert (first.state, first.message) == (FAILED, "No space left on device")
    assert world.state("a") is READY
    world.reports.pop("b")
    world.hear()
    assert first.state is FAILED, "it is shown until somebody does something about it"
    second = world.load("b")
    assert second.number > first.number
    assert [one.name for one in world.book] == ["a", "b"]


# -- unloads


def test_an_unload_lets_requests_end(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.users["a"] = 1
    a = world.book.unload("a")
    assert a.state is DRAINING
    assert world.served() == ["b"]
    world.pass_time(DRAIN_SECONDS - 1)
    assert "a" in world.orders()
    world.users["a"] = 0
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS - 0.1)
    assert "a" in world.orders(), "one may be on its way from an apiserver"
    world.pass_time(0.1)
    assert "a" not in world.orders()
    assert a.state is DRAINING
    world.carry_out()
    assert a.state is GONE
    assert [one.name for one in world.book] == ["b"]


def test_a_model_that_was_loaded_lets_its_requests_end_too(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.users["b"] = 1
    world.book.unload("b")
    world.pass_time(DRAIN_SECONDS - 1)
    assert "b" in world.orders()


def test_requests_that_do_not_end_hold_a_model_for_so_long(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.users["a"] = 1
    world.book.unload("a")
    world.pass_time(DRAIN_SECONDS - 0.1)
    assert "a" in world.orders()
    world.pass_time(0.1)
    assert "a" not in world.orders()


def test_a_request_on_its_way_begins_the_wait_anew(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.book.unload("a")
    world.pass_time(0)
    world.users["a"] = 1
    world.pass_time(LINGER_SECONDS)
    world.users["a"] = 0
    world.pass_time(0)
    assert "a" in world.orders()


def test_an_unload_of_a_draining_model_joins(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    assert world.book.unload("b") is world.book.unload("b")


def test_a_load_is_given_up(world: ModelWorld) -> None:
    b = world.load("b")
    world.say("b", FETCHING)
    world.book.unload("b")
    assert "b" not in world.orders()
    world.carry_out()
    assert b.state is GONE


def test_an_unload_of_a_failed_model_forgets_it(world: ModelWorld) -> None:
    world.load("b")
    world.say("b", FAILED, error="ModelNotFound", message="no such model")
    assert world.book.unload("b").state is FAILED
    assert [one.name for one in world.book] == ["a"]


def test_the_last_model_stays(world: ModelWorld) -> None:
    with pytest.raises(InvalidRequest, match="model a is the only one"):
        world.book.unload("a")
    world.load("b")
    world.say("b", FAILED, error="ModelNotFound", message="no such model")
    with pytest.raises(InvalidRequest, match="model a is the only one"):
        world.book.unload("a")


def test_an_unknown_model_is_not_unloaded(world: ModelWorld) -> None:
    with pytest.raises(NotFound, match="there is no model aa"):
        world.book.unload("aa")
    with pytest.raises(NotFound, match="there is no model x"):
        world.load("b", swap="x")


# -- swaps


def test_a_swap_prepares_then_drains_then_starts(world: ModelWorld) -> None:
    world.users["a"] = 1
    world.load("b", swap="a")
    assert not world.orders()["b"].may_start
    assert world.orders()["b"].swap == "a"
    world.say("b", FETCHING)
    assert world.state("a") is READY, "nothing of a is given up for a download"
    world.say("b", STARTING, directory="/models/b")
    assert world.state("a") is DRAINING
    assert world.served() == ["b"], "requests for b wait already"
    assert not world.orders()["b"].may_start, "its place is not free yet"
    world.users["a"] = 0
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    world.carry_out()
    assert world.orders()["b"].may_start
    world.become_ready("b")
    assert world.orders()["b"].swap == ""


def test_a_model_comes_back_when_its_successor_cannot_start(world: ModelWorld) -> None:
    world.load("b", swap="a")
    world.say("b", STARTING)
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    world.carry_out()
    assert world.state("a") is None
    world.say("b", FAILED, error="StartFailed", message="it was killed")
    assert world.state("a") is REGISTERED
    assert "a" in world.orders()
    assert world.state("b") is FAILED


def test_a_model_that_still_drains_goes_on_when_its_successor_cannot_start(world: ModelWorld) -> None:
    number = world.orders()["a"].number
    world.users["a"] = 1
    world.load("b", swap="a")
    world.say("b", STARTING)
    world.say("b", FAILED, error="StartFailed", message="it was killed")
    world.hear()
    assert world.state("a") is READY
    assert world.orders()["a"].number == number


def test_a_model_whose_successor_cannot_be_had_has_not_left(world: ModelWorld) -> None:
    world.load("b", swap="a")
    world.say("b", FAILED, error="StartFailed", message="it needs 9 GiB")
    assert world.state("a") is READY
    assert [one.name for one in world.book] == ["a", "b"]


def test_a_model_is_swapped_once(world: ModelWorld) -> None:
    world.load("b", swap="a")
    with pytest.raises(InvalidRequest, match="model a is being swapped for b"):
        world.load("c", swap="a")
    world.say("b", STARTING)
    with pytest.raises(InvalidRequest, match="model a is leaving or has failed"):
        world.load("c", swap="a")


def test_a_load_beside_it_is_no_swap(world: ModelWorld) -> None:
    world.load("b")
    assert world.load("c", swap="a").swap == "a"


# -- what others are told


def test_each_change_is_told(world: ModelWorld) -> None:
    world.load("b")
    world.say("b", STARTING)
    world.say("b", READY)
    seen = [world.book.version]
    world.answer("a", "b")
    seen.append(world.book.version)
    world.load("c")
    world.say("c", STARTING)
    seen.append(world.book.version)
    world.answer("a", "b", c="no tokenizer")
    seen.append(world.book.version)
    world.book.unload("c")
    seen.append(world.book.version)
    assert seen == sorted(set(seen))


def test_the_first_load_of_all_is_number_one_and_saved(clock: VirtualClock) -> None:
    book = ModelBook(clock, lambda name: 0, tuple, drain_seconds=DRAIN_SECONDS, manages=True)
    assert book.load("b", entry("b")).number == 1
    assert book.snapshot() != ""
    next_book = ModelBook(clock, lambda name: 0, tuple, drain_seconds=DRAIN_SECONDS, manages=True)
    next_book.take_over(ModelBookSnapshot(), 0)
    assert next_book.load("b", entry("b")).number == 1


def test_the_same_text_is_saved_until_something_changes(world: ModelWorld) -> None:
    text = world.book.snapshot()
    assert world.book.snapshot() is text
    world.load("b")
    assert world.book.snapshot() != text


def test_loads_are_saved_without_a_model_of_the_manifest(world: ModelWorld) -> None:
    world.begin_term({})
    assert world.book.snapshot() == ""
    world.load("b")
    assert '"b"' in world.book.snapshot().replace("\\", "")


# -- restarts


def test_a_runner_that_starts_again_begins_anew(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.reports.clear()
    world.hear()
    assert [one.state for one in world.book] == [REGISTERED, REGISTERED]
    assert set(world.orders()) == {"a", "b"}
    world.become_ready("a", "b")


def test_a_model_that_drains_is_gone_with_its_runner(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.users["a"] = 1
    world.book.unload("a")
    del world.reports["a"]
    world.hear()
    assert world.state("a") is None


def test_another_router_goes_on_with_a_load(world: ModelWorld) -> None:
    world.load("b", swap="a")
    world.say("b", STARTING, directory="/models/b")
    number = world.orders()["b"].number
    world.begin_term({"a": entry("a")}, world.book.snapshot())
    assert world.orders()["b"].number == number
    assert world.state("a") is DRAINING
    world.hear()
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    world.carry_out()
    world.become_ready("b")
    assert world.served() == ["b"]
    world.begin_term({"a": entry("a")}, world.book.snapshot())
    assert world.served() == ["b"], "a was in the manifest before, and left since"
    assert world.load("c").number > 2000, "numbers only grow"


def test_another_router_drains_a_model_for_its_whole_time(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.users["a"] = 1
    world.book.unload("a")
    world.pass_time(DRAIN_SECONDS - 1)
    world.begin_term({"a": entry("a")}, world.book.snapshot())
    world.pass_time(DRAIN_SECONDS - 1)
    assert "a" in world.orders()


def test_another_router_tries_again_what_has_failed(world: ModelWorld) -> None:
    world.load("b")
    world.say("b", FAILED, error="StartFailed", message="it was killed")
    world.begin_term({"a": entry("a")}, world.book.snapshot())
    b = world.book.named("b")
    assert b is not None
    assert (b.state, b.error, b.message) == (REGISTERED, "", "")


def test_the_manifest_wins_where_it_has_changed(world: ModelWorld) -> None:
    saved = world.book.snapshot()
    world.begin_term({"a": entry("a", "hub/a2"), "c": entry("c")}, saved)
    assert [(one.name, one.source, one.declared) for one in world.book] == [
        ("a", "hub/a2", True),
        ("c", "hub/c", True),
    ]
    world.begin_term({"c": entry("c")}, world.book.snapshot())
    assert [one.name for one in world.book] == ["c"]


def test_what_an_operator_loaded_is_not_the_manifest_s_to_take(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.begin_term({"a": entry("a")}, world.book.snapshot())
    assert [one.name for one in world.book] == ["a", "b"]


# -- what is


def test_the_same_models_are_the_same_object(world: ModelWorld) -> None:
    served, version = world.book.served(), world.book.version
    world.hear()
    assert world.book.served() is served
    assert world.book.version == version
    world.load("b")
    assert world.book.served() is served
    assert world.book.version > version


def test_each_decision_is_a_new_version_and_is_saved(world: ModelWorld) -> None:
    """Who follows the orders is woken by it, and the next router knows it."""
    seen = [(world.book.version, world.book.snapshot())]

    def has_changed() -> bool:
        seen.append((world.book.version, world.book.snapshot()))
        return seen[-1][0] > seen[-2][0] and seen[-1][1] != seen[-2][1]

    world.load("b")
    assert has_changed()
    world.say("b", STARTING)
    assert has_changed()
    world.say("b", READY)
    world.answer("a", "b")
    assert has_changed()
    world.book.unload("a")
    assert has_changed()
    before = world.book.version
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    assert world.book.version > before, "its processes are to end"
    world.carry_out()
    assert has_changed()
    world.begin_term({}, world.book.snapshot())
    before = world.book.version
    world.book.declare({})
    assert world.book.version > before


def test_what_was_loaded_again_is_the_manifest_s_no_more(world: ModelWorld) -> None:
    world.load("b")
    world.become_ready("a", "b")
    world.book.unload("a")
    del world.reports["a"]
    world.hear()
    world.load("a")
    world.begin_term({"b2": entry("b2")}, world.book.snapshot())
    assert [one.name for one in world.book] == ["b", "a", "b2"]


def test_a_swap_that_fails_late_finds_the_old_model_loaded_again(world: ModelWorld) -> None:
    world.load("b", swap="a")
    world.say("b", STARTING)
    del world.reports["a"]
    world.hear()
    again = world.load("a")
    world.say("b", FAILED, error="StartFailed", message="it was killed")
    assert [one.name for one in world.book] == ["b", "a"]
    assert world.book.named("a") is again


def test_time_matters_while_a_model_drains(world: ModelWorld) -> None:
    assert world.book.next_due() is None
    world.load("b")
    world.become_ready("a", "b")
    world.users["a"] = 1
    world.book.unload("a")
    assert world.book.next_due() == world.clock.now() + USE_CHECK_SECONDS
    assert USE_CHECK_SECONDS <= LINGER_SECONDS / 2, "a model without requests leaves soon"
    world.users["a"] = 0
    world.pass_time(0)
    world.pass_time(LINGER_SECONDS)
    assert world.book.next_due() is None


def test_on_kubernetes_models_come_with_the_manifest(make_world: Callable[..., ModelWorld]) -> None:
    world = make_world(manages=False)
    assert world.state("a") is READY
    with pytest.raises(InvalidRequest) as refused:
        world.load("b")
    assert refused.value.message == ON_KUBERNETES
    with pytest.raises(InvalidRequest) as refused:
        world.book.unload("a")
    assert refused.value.message == ON_KUBERNETES
    assert world.book.snapshot() == ""


def test_it_shows_its_state(world: ModelWorld) -> None:
    assert repr(world.book) == f"<ModelBook ['a#{world.orders()['a'].number}:ready']>"


def test_a_pull_ends_with_the_files_and_a_load_goes_on_from_there(world: ModelWorld) -> None:
    b = world.book.load("b", entry("b"), pull=True)
    assert world.orders()["b"].pull
    world.say("b", FETCHING)
    world.say("b", FETCHED, directory="/models/b")
    assert (b.state, world.served()) == (FETCHED, ["a"])
    assert world.book.load("b", entry("b"), pull=True) is b
    with pytest.raises(InvalidRequest, match="the only one"):
        world.book.unload("a")
    assert world.book.load("b", entry("b"), "a") is b
    assert (world.orders()["b"].pull, world.orders()["b"].may_start) == (False, False)
    world.say("b", STARTING, directory="/models/b")
    assert (world.state("a"), world.served()) == (DRAINING, ["b"])


def test_a_load_of_another_entry_takes_the_place_of_a_pull(world: ModelWorld) -> None:
    world.book.load("b", entry("b"), pull=True)
    world.say("b", FETCHED)
    other = world.book.load("b", entry("b", "hub/other"))
    assert [(one.number, one.pull) for one in world.book if one.name == "b"] == [(other.number, False)]


def test_a_pull_that_is_unloaded_goes_at_once(world: ModelWorld) -> None:
    world.book.load("b", entry("b"), pull=True)
    world.say("b", FETCHED)
    world.book.unload("b")
    assert "b" not in world.orders()
    world.carry_out()
    assert world.state("b") is None


def test_a_load_that_was_only_pulled_yet_drains_no_requests(world: ModelWorld) -> None:
    """Apiservers take its requests from the start of its engines on."""
    world.book.load("b", entry("b"), pull=True)
    world.say("b", FETCHED)
    world.load("b")
    world.book.unload("b")
    assert "b" not in world.orders(), "its files are let go of at once"


def test_a_pull_takes_nobody_s_place(world: ModelWorld) -> None:
    with pytest.raises(InvalidRequest, match="a pull starts no engines, so it takes nobody's place"):
        world.book.load("b", entry("b"), "a", pull=True)
    assert world.state("b") is None


def test_the_next_router_knows_that_a_model_is_pulled_only(world: ModelWorld) -> None:
    world.book.load("b", entry("b"), pull=True)
    world.say("b", FETCHED)
    world.begin_term({"a": entry("a")}, world.book.snapshot())
    assert world.orders()["b"].pull
    assert world.state("b") is FETCHED
