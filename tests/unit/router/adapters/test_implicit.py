"""Adapters that requests loaded by their source stay no longer than they are used."""

import pytest

from llmserve.core.adapters import AdapterState, AdapterTier
from llmserve.router.adapters.lifecycle import MOST_IMPLICIT, UNUSED_SECONDS
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.snapshot import AdapterSnapshot
from tests.unit.router.adapters.conftest import MODEL, World, digest_of

READY, DRAINING = AdapterState.READY, AdapterState.DRAINING


@pytest.fixture
def world(world: World) -> World:
    world.start("decode-0")
    return world


def by_request(world: World, name: str) -> Registration:
    """A load for a request, which is over."""
    registration = world.load(name, f"contents of {name}", implicit=True)
    world.round(0.0, rounds=2)
    assert registration.state is READY
    return registration


def wait(world: World, seconds: float) -> None:
    world.clock.advance(seconds)
    world.book.lifecycle.tick()


def test_one_that_no_request_asks_for_goes_after_an_hour(world: World) -> None:
    registration = by_request(world, "a")
    assert world.book.lifecycle.next_due() == world.clock.now() + UNUSED_SECONDS
    wait(world, UNUSED_SECONDS - 1)
    assert registration.state is READY
    wait(world, 1)
    assert registration.state is DRAINING
    world.start("decode-0")  # the clock went on without its heartbeats
    world.round(rounds=8)
    assert list(world.book) == []
    assert world.book.lifecycle.next_due() is None


def test_each_request_that_asks_for_it_keeps_it_for_another_hour(world: World) -> None:
    registration = by_request(world, "a")
    wait(world, UNUSED_SECONDS - 1)
    assert world.book.refusal(MODEL, registration.digest) is None
    wait(world, UNUSED_SECONDS - 1)
    assert registration.state is READY
    wait(world, 1)
    assert registration.state is DRAINING


def test_it_stays_while_a_request_has_it(world: World) -> None:
    registration = by_request(world, "a")
    world.admit("r", registration.digest)
    wait(world, 3 * UNUSED_SECONDS)
    assert registration.state is READY
    world.done("r")
    wait(world, 1)
    assert registration.state is DRAINING


def test_another_router_gives_it_another_hour(world: World) -> None:
    by_request(world, "a")
    wait(world, UNUSED_SECONDS - 1)
    world.begin_term(world.book.snapshot())
    world.round(0.0)
    (registration,) = world.book
    wait(world, UNUSED_SECONDS - 1)
    assert (registration.state, registration.wish.implicit) == (READY, True)
    wait(world, 1)
    assert registration.state is DRAINING


def test_a_load_that_never_ends_is_given_up(world: World) -> None:
    world.sources.away.add("dir:/a")
    registration = world.load("a", implicit=True)
    wait(world, UNUSED_SECONDS)
    assert registration.leaving
    assert (registration.error, registration.message) == ("NotFound", "no request has asked for it since")


def test_named_ones_stay(world: World) -> None:
    registration = world.loaded("a", "one")
    wait(world, 2 * UNUSED_SECONDS)
    assert registration.state is READY


def test_a_pinned_one_stays(world: World) -> None:
    registration = by_request(world, "a")
    world.book.keep(registration, AdapterTier.DRAM, pinned=True)
    wait(world, 2 * UNUSED_SECONDS)
    assert registration.state is READY


@pytest.mark.parametrize("order", [(True, False), (False, True)])
@pytest.mark.parametrize("rounds", [0, 2])
def test_a_named_load_of_its_name_makes_it_stay(world: World, order: tuple[bool, bool], rounds: int) -> None:
    """rounds: none: the second load joins the first one."""
    for implicit in order:
        last = world.load("a", "one", implicit=implicit)
        world.round(rounds=rounds)
    world.round(rounds=3)
    assert (last.state, last.wish.implicit) == (READY, False)


def test_of_too_many_those_that_were_used_longest_ago_go_first(world: World) -> None:
    found = []
    for number in range(MOST_IMPLICIT):
        found.append(by_request(world, f"a{number}"))
        world.clock.advance(1)
    named = world.load("named", "other")
    assert all(one.state is READY for one in found)
    world.admit("r", found[0].digest)
    world.book.refusal(MODEL, found[1].digest)
    by_request(world, "one more")
    assert [one.state is READY for one in found[:4]] == [True, True, False, True]
    assert named.state is not DRAINING
    by_request(world, "and another")
    assert [one.state is READY for one in found[:5]] == [True, True, False, False, True]


def test_what_is_used_or_under_way_stays_though_there_are_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.router.adapters.lifecycle.MOST_IMPLICIT", 2)
    used, unused = by_request(world, "used"), by_request(world, "unused")
    world.admit("r", used.digest)
    under_way = world.load("under way", "x", implicit=True)
    assert (used.state, unused.state) == (READY, DRAINING), "the clock has not gone on since it was used"
    world.load("another", "y", implicit=True)
    assert used.state is READY
    assert under_way.pending


def test_the_bounds_are_those_of_the_documentation() -> None:
    assert (UNUSED_SECONDS, MOST_IMPLICIT) == (3600.0, 64)


def test_it_is_saved(world: World) -> None:
    world.load("a", implicit=True)
    (saved,) = AdapterSnapshot.from_json(world.book.snapshot()).registrations
    assert saved.wish == AdapterWish("a", "dir:/a", implicit=True)
    earlier = world.book.snapshot().replace('"implicit":true,', "")
    (saved,) = AdapterSnapshot.from_json(earlier).registrations
    assert not saved.wish.implicit, "earlier releases did not know it"


def test_a_twin_is_as_used_as_the_other(world: World) -> None:
    first, second = (world.load(name, "same", implicit=True) for name in "ab")
    world.round(0.0, rounds=3)
    wait(world, UNUSED_SECONDS - 1)
    world.book.refusal(MODEL, digest_of("same"))
    wait(world, 1)
    assert (first.state, second.state) == (READY, READY)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("error", ["InvalidRequest", "ModelNotFound"])
def test_a_load_that_failed_leaves_a_name_only_if_somebody_named_it(
    world: World, implicit: bool, error: str
) -> None:
    """Whether anybody still waits for it or not. ModelNotFound: after the digest was known."""
    if error == "ModelNotFound":
        world.start("prefill-0", fetches=False)
        registration = world.load("a", "one", implicit=implicit)
        world.round(0.0, rounds=3)
        world.sources.content["dir:/a"] = "two"
        world.workers["prefill-0"].fetches = True
    else:
        registration = world.load("a", implicit=implicit)
    world.round(0.0, rounds=2)
    assert registration.pending is False
    assert registration.leaving is implicit
    assert registration.error == error, "those who wait are told"
    world.round(rounds=8)
    assert [one.wish.name for one in world.book] == ([] if implicit else ["a"])
    assert (registration.error, registration.state) == (
        error,
        AdapterState.GONE if implicit else AdapterState.FAILED,
    )


def test_a_load_that_failed_may_be_asked_for_anew_at_once(world: World) -> None:
    failed = world.load("a", implicit=True)
    world.round(0.0, rounds=2)
    assert failed.state is DRAINING
    again = by_request(world, "a")
    assert again is not failed
