"""Adapters come near while requests for them wait in the queue."""

from dataclasses import replace

import pytest

from llmserve.core.adapters import AdapterTier, LoraShape
from llmserve.core.ids import AdapterDigest, RequestId, WorkerId
from llmserve.router.adapters.awaited import AdapterPrefetch
from llmserve.router.adapters.registration import Registration
from llmserve.router.events import Effect, RequestPlaced
from llmserve.router.placement.adapter_homes import first_home
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.worker import DrainOrder, WorkerState
from tests.unit.router.adapters.conftest import LORA, MODEL, World, digest_of

DRAM, DISK, SOURCE = AdapterTier.DRAM, AdapterTier.DISK, AdapterTier.SOURCE
ONE_SLOT = replace(LORA, slots=1)


@pytest.fixture
def field(world: World) -> World:
    """One worker for whole requests, whose slot has `busy`; eight others are on its disk."""
    world.start("aggregated-0", lora=ONE_SLOT)
    for name in ("busy", *(f"a{number}" for number in range(8))):
        world.loaded(name, name)
    world.admit("running", digest_of("busy"))
    return world


def wait(world: World, request: str, adapter: str) -> None:
    world.admit(request, digest_of(adapter))
    world.controller.check_integrity()


def ordered(world: World, worker: str, tier: AdapterTier = DRAM) -> set[str]:
    return {order.source.removeprefix("dir:/") for order in world.ordered(worker) if order.tier is tier}


def test_a_version_comes_near_while_a_request_for_it_waits(field: World) -> None:
    wait(field, "r", "a0")
    assert ordered(field, "aggregated-0") == {"a0"}
    assert field.heartbeat("aggregated-0"), "its next heartbeat tells it"
    field.heartbeat("aggregated-0")
    assert field.member("aggregated-0").adapters[digest_of("a0")].tier is DRAM
    assert field.book.lifecycle.prefetches == 1


def prefetches(effects: list[Effect]) -> dict[str, list[AdapterPrefetch]]:
    """Returns what is told of each request that has got a place."""
    return {one.request_id: list(one.prefetches) for one in effects if isinstance(one, RequestPlaced)}


def test_a_request_that_has_waited_is_told_of_it_and_no_other_one(field: World) -> None:
    assert prefetches(field.admit("at once", digest_of("busy"))) == {"at once": []}
    field.done("at once")
    began = field.clock.now()
    wait(field, "r", "a0")
    field.round(2.0)
    field.round(3.0)
    assert field.member("aggregated-0").adapters[digest_of("a0")].tier is DRAM
    field.round(rounds=2)
    wait(field, "s", "a1")
    (placed,) = [prefetches(field.done("running"))]
    assert placed == {"r": [AdapterPrefetch(WorkerId("aggregated-0"), DISK, began, 5.0)]}
    assert prefetches(field.admit("t", digest_of("a0"))) == {"t": []}
    field.done("t")
    (placed,) = [prefetches(field.done("r"))]
    assert placed == {"s": [AdapterPrefetch(WorkerId("aggregated-0"), DISK, began + 7.0)]}


def test_one_without_an_adapter_or_with_a_place_asks_for_nothing(field: World) -> None:
    field.admit("base", AdapterDigest(""))
    field.admit("also", digest_of("busy"))
    assert ordered(field, "aggregated-0") == set()


@pytest.mark.parametrize("leaves", ["placed", "withdrawn", "expired", "gone with its apiserver"])
def test_it_is_wanted_as_before_when_no_request_waits_for_it(field: World, leaves: str) -> None:
    wait(field, "r", "a0")
    wait(field, "s", "a0")
    field.done("s")
    assert ordered(field, "aggregated-0") == {"a0"}, "one still waits"
    match leaves:
        case "placed":
            field.done("running")
        case "withdrawn":
            field.done("r")
        case "expired":
            field.round(rounds=100)
        case _:
            field.controller.close_session(field.session)
    assert ordered(field, "aggregated-0") == set()
    assert ordered(field, "aggregated-0", DISK) >= {"busy", "a0"}


def test_a_worker_brings_few_at_once(field: World) -> None:
    for number in range(6):
        wait(field, f"r{number}", f"a{number}")
    assert ordered(field, "aggregated-0") == {"a0", "a1", "a2", "a3"}
    field.done("r4")
    assert ordered(field, "aggregated-0") == {"a0", "a1", "a2", "a3"}
    field.done("r1")
    assert ordered(field, "aggregated-0") == {"a0", "a2", "a3", "a5"}
    assert field.book.lifecycle.prefetches == 5


def test_those_that_found_no_turn_get_it_with_the_next_request(field: World) -> None:
    for number in range(5):
        wait(field, f"r{number}", f"a{number}")
    field.done("r0")
    wait(field, "r5", "a5")
    assert ordered(field, "aggregated-0") == {"a1", "a2", "a3", "a4"}
    field.done("r1")
    wait(field, "again", "a5")
    assert ordered(field, "aggregated-0") == {"a2", "a3", "a4", "a5"}


def test_what_is_near_already_is_not_ordered(field: World) -> None:
    registration = field.book.find(MODEL, "a0")
    field.book.keep(registration, DRAM)
    field.round(rounds=2)
    field.book.keep(registration, DISK)
    wait(field, "r", "a0")
    assert ordered(field, "aggregated-0") == set()
    assert field.book.lifecycle.prefetches == 0


def test_one_that_no_host_has_is_fetched(world: World) -> None:
    world.start("aggregated-0", lora=ONE_SLOT)
    world.loaded("busy", "busy")
    far = world.load("far", "far")
    world.round(rounds=4)
    world.book.keep(far, SOURCE)
    world.admit("running", digest_of("busy"))
    world.start("aggregated-1", lora=ONE_SLOT)
    world.stop("aggregated-0")
    world.round(rounds=2)
    world.admit("other", digest_of("busy"))
    assert world.member("aggregated-1").adapters.keys() == {digest_of("busy")}
    wait(world, "r", "far")
    world.round(rounds=2)
    assert world.member("aggregated-1").adapters[digest_of("far")].tier is DRAM


def spread(world: World, *workers: str) -> Registration:
    world.start(*workers, lora=ONE_SLOT)
    for name in ("busy", "other"):
        world.loaded(name, name)
    return world.loaded("a", "a")


def home_of(world: World, adapter: str, *workers: str) -> WorkerId:
    return first_home(digest_of(adapter), [world.member(name) for name in workers]).spec.worker_id


def test_each_role_has_it_at_its_first_home(world: World) -> None:
    workers = ("prefill-0", "prefill-1", "decode-0", "decode-1")
    spread(world, *workers)
    for number in range(2):
        world.admit(f"busy-{number}", digest_of("busy"))
        world.admit(f"other-{number}", digest_of("other"))
    wait(world, "r", "a")
    homes = {home_of(world, "a", *workers[:2]), home_of(world, "a", *workers[2:])}
    assert {name for name in workers if ordered(world, name)} == homes
    assert world.book.lifecycle.prefetches == 2


def test_a_worker_that_cannot_get_it_is_not_its_home(world: World) -> None:
    registration = spread(world, "aggregated-0", "aggregated-1")
    for name in ("busy", "other"):
        world.admit(name, digest_of(name))
    home = home_of(world, "a", *world.workers)
    world.controller.membership.rule_out(home, registration.digest, out=True)
    wait(world, "r", "a")
    assert [name for name in world.workers if ordered(world, name)] == [
        name for name in world.workers if name != home
    ]


def test_a_version_whose_name_has_gone_comes_near_as_well(field: World) -> None:
    field.book.unload(MODEL, "a0")
    wait(field, "r", "a0")
    assert ordered(field, "aggregated-0") == {"a0"}
    field.done("r")
    assert ordered(field, "aggregated-0") == set()


def test_leaving_twice_or_without_having_waited_is_nothing(field: World) -> None:
    wait(field, "r", "a0")
    awaited = field.controller.requests.awaited
    placement = PlacementRequest(MODEL, adapter=digest_of("a0"))
    for _ in range(2):
        awaited.leave(RequestId("unknown"), placement)
        awaited.leave(RequestId("r"), PlacementRequest(MODEL, adapter=digest_of("a1")))
    assert ordered(field, "aggregated-0") == {"a0"}
    for _ in range(2):
        awaited.wait(RequestId("r"), placement)
    for _ in range(2):
        awaited.leave(RequestId("r"), placement)
    assert ordered(field, "aggregated-0") == set()
    assert awaited._busy[WorkerId("aggregated-0")] == 0


def test_a_cluster_without_workers_for_adapters_brings_nothing(world: World) -> None:
    world.start("aggregated-0", lora=LoraShape())
    world.controller.requests.awaited.wait(RequestId("r"), PlacementRequest(MODEL, adapter=digest_of("a")))
    assert world.ordered("aggregated-0") == []
    assert world.book.lifecycle.prefetches == 0


def crowded(world: World) -> tuple[str, str]:
    """Two workers with a slot each, and a request that waits for `a`. Returns its home and the other one."""
    spread(world, "aggregated-0", "aggregated-1")
    for name in ("busy", "other"):
        world.admit(name, digest_of(name))
    wait(world, "r", "a")
    home = home_of(world, "a", *world.workers)
    return home, next(name for name in world.workers if name != home)


@pytest.mark.parametrize("why", ["stopped", "silent", "suspected", "drained", "cannot get it"])
def test_another_worker_brings_it_near_when_the_first_cannot_run_it_any_more(world: World, why: str) -> None:
    home, other = crowded(world)
    assert (ordered(world, home), ordered(world, other)) == ({"a"}, set())
    member, membership = world.member(home), world.controller.membership
    match why:
        case "stopped":
            world.stop(home)
        case "silent":
            del world.workers[home]
            world.round(rounds=20)
        case "suspected":
            world.controller.worker_failed(member.spec.worker_id, member.spec.epoch, "it broke")
        case "drained":
            world.controller.drain(member.spec.worker_id, DrainOrder(True, 60.0))
        case _:
            membership.rule_out(member.spec.worker_id, digest_of("a"), out=True)
    world.controller.tick()
    world.controller.check_integrity()
    assert (ordered(world, home), ordered(world, other)) == (set(), {"a"})
    assert world.book.lifecycle.prefetches == 2


def test_it_stays_where_it_comes_near_when_its_home_is_back(world: World) -> None:
    home, other = crowded(world)
    member = world.member(home)
    world.controller.worker_failed(member.spec.worker_id, member.spec.epoch, "it broke")
    world.round(rounds=3)
    assert world.state(home) is WorkerState.AVAILABLE
    assert (ordered(world, home), ordered(world, other)) == (set(), {"a"})


def test_a_worker_that_is_away_when_a_request_comes_brings_it_near_later(field: World) -> None:
    member = field.member("aggregated-0")
    field.controller.worker_failed(member.spec.worker_id, member.spec.epoch, "it broke")
    wait(field, "r", "a0")
    assert ordered(field, "aggregated-0") == set()
    field.round()
    assert ordered(field, "aggregated-0") == {"a0"}


def test_a_worker_that_is_gone_leaves_the_turns_of_those_that_are_there(field: World) -> None:
    for number in range(4):
        wait(field, f"r{number}", f"a{number}")
    field.start("aggregated-1", lora=ONE_SLOT)
    field.round(rounds=3)
    assert ordered(field, "aggregated-0") == {"a1", "a2", "a3"}, "the other one has a place"
    field.stop("aggregated-0")
    assert ordered(field, "aggregated-1") == {"a1", "a2", "a3"}
    assert field.controller.requests.awaited._busy == {"aggregated-0": 0, "aggregated-1": 3}


def test_a_second_name_of_a_version_is_ordered_as_near(field: World) -> None:
    """The first one may go while the request still waits."""
    wait(field, "r", "a0")
    field.sources.content["dir:/twin"] = "a0"
    field.loaded("twin", "a0")
    assert ordered(field, "aggregated-0") == {"a0", "twin"}
    field.done("r")
    assert ordered(field, "aggregated-0") == set()


def test_a_role_that_has_it_near_somewhere_needs_no_other(world: World) -> None:
    registration = spread(world, "aggregated-0", "aggregated-1")
    for name in ("busy", "other"):
        world.admit(name, digest_of(name))
    far = home_of(world, "a", *world.workers)
    near = next(name for name in world.workers if name != far)
    world.workers[near].reports[registration.number] = replace(
        world.workers[near].reports[registration.number], tier=DRAM
    )
    world.round()
    wait(world, "r", "a")
    assert ordered(world, near) == ordered(world, far) == set()
