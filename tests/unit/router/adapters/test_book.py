"""The story of an adapter: loaded, resolved by one worker, held by all, used, swapped, unloaded."""

from dataclasses import replace
from itertools import pairwise

import pytest

from llmserve.core.adapters import (
    BASE_MODEL,
    AdapterReport,
    AdapterReports,
    AdapterState,
    AdapterTier,
    LoraShape,
)
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import WorkerId
from llmserve.core.request import Outcome
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.adapters.lifecycle import LINGER_SECONDS
from llmserve.router.adapters.registration import AdapterWish
from llmserve.router.events import RequestPlaced, RequestRefused
from llmserve.router.workers.worker import WorkerState
from tests.unit.router.adapters.conftest import MODEL, World, digest_of

FETCHING, READY, FAILED = AdapterState.FETCHING, AdapterState.READY, AdapterState.FAILED
DRAINING, GONE, REGISTERED = AdapterState.DRAINING, AdapterState.GONE, AdapterState.REGISTERED


class TestLoad:
    def test_one_worker_computes_the_digest_then_all_fetch(self, world: World) -> None:
        world.start("prefill-0", "decode-0")
        registration = world.load("sql", "one")
        assert registration.state is FETCHING
        assert [order.digest for order in world.ordered("decode-0")] == [""]
        assert world.ordered("prefill-0") == []
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        assert (registration.digest, registration.rank) == (digest_of("one"), 8)
        assert (registration.size_bytes, registration.state) == (100, FETCHING)
        (order,) = world.ordered("prefill-0")
        assert (order.digest, order.source) == (digest_of("one"), "dir:/sql")
        assert (order.number, order.tier, order.pinned) == (registration.number, AdapterTier.DISK, False)
        assert world.names() == {}
        world.heartbeat("prefill-0")
        assert registration.state is FETCHING
        world.heartbeat("prefill-0")
        assert registration.state is READY
        (named,) = world.named()
        assert (named.name, named.digest, named.parent) == ("sql", digest_of("one"), MODEL)
        assert (named.source, named.rank, named.size_bytes) == ("dir:/sql", 8, 100)

    def test_without_workers_it_waits_for_some(self, world: World) -> None:
        world.declared = (AdapterWish("sql", "dir:/sql"),)
        world.begin_term(None)
        (registration,) = world.book
        assert registration.state is REGISTERED
        world.sources.content["dir:/sql"] = "one"
        world.start("decode-0")
        assert registration.state is FETCHING
        world.round(rounds=2)
        assert world.names() == {"sql": digest_of("one")}

    def test_resolving_is_shared_among_workers(self, world: World) -> None:
        world.start("decode-0", "decode-1", "decode-2")
        for number in range(6):
            world.load(f"a{number}", "one")
        assert [len(world.ordered(f"decode-{number}")) for number in range(3)] == [2, 2, 2]
        assert [order.source for order in world.ordered("decode-0")] == ["dir:/a0", "dir:/a3"]

    def test_a_worker_that_dies_while_it_resolves_is_followed_by_another(self, world: World) -> None:
        world.start("decode-0", "decode-1", fetches=False)
        registration = world.load("sql", "one")
        assert (registration.resolver, len(world.ordered("decode-0"))) == ("decode-0", 1)
        world.stop("decode-0")
        assert (registration.resolver, len(world.ordered("decode-1"))) == ("decode-1", 1)
        world.workers["decode-1"].fetches = True
        world.round(rounds=2)
        assert world.names() == {"sql": digest_of("one")}

    def test_a_worker_that_comes_back_begins_again(self, world: World) -> None:
        world.start("decode-0", fetches=False)
        registration = world.load("sql", "one")
        world.heartbeat("decode-0")
        world.start("decode-0")
        assert registration.resolver == "decode-0"
        world.round(rounds=2)
        assert registration.state is READY

    def test_all_workers_gone_lets_it_wait(self, world: World) -> None:
        world.start("decode-0", fetches=False)
        registration = world.load("sql", "one")
        world.stop("decode-0")
        assert registration.resolver is None
        world.start("decode-1")
        world.round(rounds=2)
        assert registration.state is READY

    def test_the_numbers_grow(self, world: World) -> None:
        numbers = [world.load("sql").number, world.load("chat").number]
        world.begin_term(None)
        numbers += [world.load("sql").number, world.load("chat").number]
        assert numbers == sorted(set(numbers))
        assert numbers[:2] == [1001, 1002]
        assert numbers[2:] == [2001, 2002]

    def test_a_prefetched_one_is_ready_when_it_is_near_enough(self, world: World) -> None:
        world.start("decode-0")
        world.sources.content["dir:/sql"] = "one"
        registration = world.load("sql", tier=AdapterTier.DRAM, pinned=True)
        worker = world.workers["decode-0"]
        world.heartbeat("decode-0")
        (order,) = worker.orders.values()
        assert (order.tier, order.pinned) == (AdapterTier.DRAM, True)
        worker.fetches = False
        report = AdapterReport(registration.number, digest_of("one"), tier=AdapterTier.DISK)
        worker.reports[registration.number] = report
        world.heartbeat("decode-0")
        assert (registration.state, registration.digest) == (FETCHING, digest_of("one"))
        worker.reports[registration.number] = replace(report, tier=AdapterTier.DEVICE)
        world.heartbeat("decode-0")
        assert registration.state is READY

    def test_one_that_is_not_prefetched_is_fetched_by_one_worker_only(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        registration = world.load("sql", "one", tier=AdapterTier.SOURCE)
        assert [order.tier for order in world.ordered("decode-0")] == [AdapterTier.DISK], (
            "to compute its digest"
        )
        world.round(rounds=3)
        assert registration.state is READY
        assert [order.tier for order in world.ordered("decode-1")] == [AdapterTier.SOURCE]
        assert world.member("decode-1").adapters == {}
        assert world.member("decode-1").state is WorkerState.AVAILABLE


class TestRefusals:
    def test_the_name_of_the_model(self, world: World) -> None:
        world.start("decode-0")
        with pytest.raises(InvalidRequest, match="m is the name of a model"):
            world.load(MODEL)

    def test_no_name(self, world: World) -> None:
        with pytest.raises(InvalidRequest, match="name of an adapter must be set"):
            world.load("")

    @pytest.mark.parametrize("digit", "aA7")
    def test_a_name_that_looks_like_a_digest(self, world: World, digit: str) -> None:
        with pytest.raises(InvalidRequest, match=f"{digit * 64} looks like the digest of an adapter"):
            world.load(digit * 64)
        for name in (digit * 63, digit * 65, "g" * 64):
            world.load(name)

    def test_workers_without_slots(self, world: World) -> None:
        world.start("decode-0", lora=LoraShape())
        with pytest.raises(InvalidRequest, match="no worker of model m runs adapters"):
            world.load("sql")
        world.start("decode-1")
        assert world.load("sql", "one").state is FETCHING
        assert world.ordered("decode-0") == []

    def test_a_model_that_there_is_not(self, world: World) -> None:
        with pytest.raises(NotFound, match=r"there is no model M; did you mean 'm'\?"):
            world.book.load("M", AdapterWish("sql", "dir:/sql"))

    def test_no_model_means_the_only_one(self, world: World) -> None:
        assert world.book.load("", AdapterWish("sql", "dir:/sql")).model == MODEL
        world.book.declare("other", ())
        with pytest.raises(InvalidRequest, match="say which model is meant: there are m, other"):
            world.book.load("", AdapterWish("sql", "dir:/sql"))
        with pytest.raises(InvalidRequest, match="other is the name of a model"):
            world.load("other")

    def test_no_model_is_known_yet(self, world: World) -> None:
        membership = world.controller.membership
        book = AdapterBook(world.clock, membership, lambda digest: 0)
        with pytest.raises(InvalidRequest, match="there are none yet"):
            book.load("", AdapterWish("sql", "dir:/sql"))

    @pytest.mark.parametrize("name", ["sqll", "SQ-L"])
    def test_unloading_an_unknown_name_says_what_is_close(self, world: World, name: str) -> None:
        world.start("decode-0")
        world.load("sql", "one")
        world.load("chat", "two")
        for call in (world.book.unload, world.book.find):
            with pytest.raises(
                NotFound, match=rf"no adapter of model m has the name {name}; did you mean 'sql'\?"
            ):
                call(MODEL, name)
        with pytest.raises(NotFound, match=r"has the name zzz$"):
            world.book.unload(MODEL, "zzz")

    def test_a_version_that_nobody_has(self, world: World) -> None:
        world.start("decode-0")
        (refused,) = world.admit("r", digest_of("other"))
        assert isinstance(refused, RequestRefused)
        assert isinstance(refused.error, NotFound)
        assert (refused.outcome, refused.request_id) == (Outcome.REJECTED, "r")
        assert digest_of("other") in refused.error.message
        assert "r" not in world.session.entries


class TestFailures:
    def test_a_wrong_source_fails_with_the_worker_s_words(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        registration = world.load("sql", "one")
        world.sources.wrong.add("dir:/sql")
        world.round(rounds=2)
        assert (registration.state, registration.error) == (FAILED, "InvalidRequest")
        assert registration.message == "worker decode-0: no such adapter"
        world.round(rounds=2)
        assert world.workers["decode-0"].orders == {}
        assert world.workers["decode-0"].reports == {}

    def test_contents_that_change_between_two_workers_fail(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        registration = world.load("sql", "one")
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        world.sources.content["dir:/sql"] = "two"
        world.round(rounds=2)
        assert (registration.state, registration.error) == (FAILED, "ModelNotFound")

    def test_a_store_that_is_away_is_tried_again_later_and_later(self, world: World) -> None:
        world.start("decode-0")
        registration = world.load("sql", "one")
        world.sources.away.add("dir:/sql")
        tries = []
        for second in range(40):
            ordered = bool(world.ordered("decode-0"))
            world.round(0.5)
            if ordered and not world.ordered("decode-0"):
                tries.append(second)
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        assert pauses == sorted(pauses)
        assert 3 <= len(tries) <= 5
        assert world.book.lifecycle.fetch_failures == len(tries)
        assert registration.state is FETCHING
        assert registration.pauses[WorkerId("decode-0")].message == "the store is away"
        world.sources.away.clear()
        world.round(rounds=40)
        assert registration.state is READY
        assert registration.pauses == {}

    def test_another_worker_tries_meanwhile(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        registration = world.load("sql", "one")
        world.sources.away.add("dir:/sql")
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        assert registration.resolver == "decode-1"
        assert world.ordered("decode-0") == []

    def test_a_pause_lasts_until_the_old_report_is_gone(self, world: World) -> None:
        world.start("decode-0")
        registration = world.load("sql", "one")
        world.sources.away.add("dir:/sql")
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        world.clock.advance(100.0)
        world.controller.tick()
        assert world.ordered("decode-0") == [], "its report is of the first try"
        assert registration.pauses[WorkerId("decode-0")].failures == 1
        world.heartbeat("decode-0")
        assert len(world.ordered("decode-0")) == 1

    def test_time_alone_ends_a_pause(self, world: World) -> None:
        world.start("decode-0")
        world.load("sql", "one")
        world.sources.away.add("dir:/sql")
        for _ in range(3):
            world.heartbeat("decode-0")
        assert world.ordered("decode-0") == []
        due = world.controller.next_wake()
        assert due is not None
        assert due <= world.clock.now() + 1.0
        world.clock.advance(1.0)
        world.controller.tick()
        assert len(world.ordered("decode-0")) == 1

    def test_a_failed_name_can_be_loaded_again(self, world: World) -> None:
        world.start("decode-0")
        world.sources.wrong.add("dir:/sql")
        first = world.load("sql", "one")
        world.round(rounds=2)
        assert first.state is FAILED
        world.sources.wrong.clear()
        second = world.loaded("sql", "one")
        assert second is not first
        world.round(rounds=2)
        assert (first.state, list(world.book)) == (GONE, [second])

    def test_a_failed_load_leaves_the_name_where_it_was(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        world.sources.wrong.add("dir:/sql")
        second = world.load("sql", "two")
        world.round(rounds=3)
        assert (first.state, second.state) == (READY, FAILED)
        assert world.names() == {"sql": digest_of("one")}
        assert world.book.find(MODEL, "sql") is first
        world.book.unload(MODEL, "sql")
        world.round(rounds=8)
        assert list(world.book) == []

    def test_an_error_of_a_worker_that_has_no_order_counts_for_nothing(self, world: World) -> None:
        world.start("decode-0", "decode-1", fetches=False)
        registration = world.load("sql", "one")
        worker = world.workers["decode-1"]
        report = AdapterReport(registration.number, error="InvalidRequest", message="no")
        worker.reports[registration.number] = report
        worker.running[report.digest] = 1  # or it would drop the report
        world.heartbeat("decode-1")
        assert (registration.state, registration.pauses) == (FETCHING, {})


class TestSwap:
    def test_the_name_moves_when_the_new_version_is_ready(self, world: World) -> None:
        world.start("prefill-0", "decode-0")
        first = world.loaded("sql", "one")
        second = world.load("sql", "two")
        for _ in range(2):
            world.heartbeat("decode-0")
            assert world.names() == {"sql": digest_of("one")}
        world.round(rounds=2)
        assert world.names() == {"sql": digest_of("two")}
        assert (first.state, second.state) == (DRAINING, READY)
        assert len(world.ordered("decode-0")) == 2

    def test_requests_of_the_old_version_keep_it(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        (placed,) = world.admit("r", digest_of("one"))
        assert isinstance(placed, RequestPlaced)
        world.loaded("sql", "two")
        world.round(rounds=30)
        assert first.state is DRAINING
        assert [order.digest for order in world.ordered("decode-0")] == [digest_of("one"), digest_of("two")]
        world.done("r")
        world.round(rounds=10)
        assert first.state is GONE
        assert [order.digest for order in world.ordered("decode-0")] == [digest_of("two")]

    def test_what_a_worker_still_runs_keeps_it_too(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        world.workers["decode-0"].running[digest_of("one")] = 1
        world.book.unload(MODEL, "sql")
        world.round(rounds=30)
        assert (first.state, len(world.ordered("decode-0"))) == (DRAINING, 1)
        world.workers["decode-0"].running.clear()
        world.round(rounds=10)
        assert first.state is GONE

    def test_a_request_that_took_the_version_before_still_comes(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        world.book.unload(MODEL, "sql")
        assert world.names() == {}
        world.round(2.0)
        world.round(LINGER_SECONDS - 2.1)
        (placed,) = world.admit("r", digest_of("one"))
        assert isinstance(placed, RequestPlaced)
        world.done("r")
        world.clock.advance(0.1)
        world.controller.tick()
        assert (first.state, world.ordered("decode-0")) == (DRAINING, [])
        (refused,) = world.admit("late", digest_of("one"))
        assert isinstance(refused, RequestRefused)

    def test_the_same_contents_again_change_nothing_for_requests(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        second = world.loaded("sql", "one")
        assert world.names() == {"sql": digest_of("one")}
        world.round(rounds=2)
        assert (first.state, second.state) == (GONE, READY)

    def test_the_same_version_under_two_names_is_let_go_with_the_last(self, world: World) -> None:
        world.start("decode-0")
        first, second = world.loaded("sql", "one"), world.loaded("chat", "one")
        world.admit("r", digest_of("one"))
        world.book.unload(MODEL, "sql")
        world.round(rounds=2)
        assert first.state is GONE, "the other name keeps it for the request"
        world.book.unload(MODEL, "chat")
        world.round(rounds=20)
        assert (second.state, len(world.ordered("decode-0"))) == (DRAINING, 1)
        world.done("r")
        world.round(rounds=8)
        assert second.state is GONE

    def test_two_names_of_a_version_that_go_together_wait_for_its_request(self, world: World) -> None:
        world.start("decode-0")
        both = [world.loaded("sql", "one"), world.loaded("chat", "one")]
        world.admit("r", digest_of("one"))
        world.book.unload(MODEL, "sql")
        world.book.unload(MODEL, "chat")
        world.round(rounds=20)
        assert DRAINING in [one.state for one in both]
        assert len(world.ordered("decode-0")) >= 1

    def test_of_two_loads_at_once_the_later_one_wins(self, world: World) -> None:
        world.start("decode-0")
        world.sources.content |= {"dir:/one": "one", "dir:/two": "two"}
        first = world.book.load(MODEL, AdapterWish("sql", "dir:/one"))
        second = world.book.load(MODEL, AdapterWish("sql", "dir:/two"))
        assert (first.pending, first.error) == (False, "InvalidRequest")
        assert first.message == "adapter sql was loaded again, from dir:/two, before this load had ended"
        assert second.number > first.number
        world.round(rounds=3)
        assert world.names() == {"sql": digest_of("two")}
        assert (first.state, second.state) == (GONE, READY)

    def test_a_load_joins_one_of_the_same_source(self, world: World) -> None:
        world.start("decode-0")
        first = world.load("sql", "one")
        second = world.load("sql", tier=AdapterTier.DRAM, pinned=True)
        assert second is first
        assert (first.wish.tier, first.wish.pinned) == (AdapterTier.DRAM, True)
        assert world.load("chat", "one") is not first

    def test_what_is_ready_is_fetched_again(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        assert world.load("sql", "two") is not first, "other files may be there now"


class TestUnload:
    def test_an_idle_cluster_lets_it_go(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        assert world.book.unload(MODEL, "sql") is registration
        assert (registration.state, registration.error) == (DRAINING, "")
        assert world.controller.next_wake() is not None
        world.round(2.5)
        world.round(2.0)
        assert len(world.ordered("decode-0")) == 1
        world.clock.advance(0.5)
        world.controller.tick()
        assert world.ordered("decode-0") == []
        assert registration.state is DRAINING, "the worker still has it"
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        assert registration.state is GONE
        assert list(world.book) == []
        assert world.book.lifecycle.next_due() is None

    def test_a_request_is_noticed_to_have_ended(self, world: World) -> None:
        """Nothing but time passes."""
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        world.admit("r", digest_of("one"))
        world.book.unload(MODEL, "sql")
        world.clock.advance(LINGER_SECONDS + 1.0)
        world.controller.tick()
        world.done("r")
        assert not registration.released
        for _ in range(8):
            world.clock.advance(1.0)
            world.controller.tick()
        assert registration.released

    def test_one_that_is_pending_is_given_up_at_once(self, world: World) -> None:
        world.start("decode-0")
        registration = world.load("sql", "one")
        world.heartbeat("decode-0")
        assert world.book.unload(MODEL, "sql") is registration
        assert (registration.error, registration.pending) == ("NotFound", False)
        assert registration.message == "adapter sql was unloaded before it was ready"
        world.round(rounds=2)
        assert registration.state is GONE
        assert world.workers["decode-0"].reports == {}

    def test_a_pending_one_without_workers_is_gone_at_once(self, world: World) -> None:
        registration = world.load("sql", "one")
        world.book.unload(MODEL, "sql")
        assert registration.state is GONE

    def test_again_while_it_is_draining(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        for _ in range(2):
            assert world.book.unload(MODEL, "sql") is registration
        world.round(rounds=10)
        with pytest.raises(NotFound):
            world.book.unload(MODEL, "sql")

    def test_both_versions_of_a_swap_go(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        second = world.load("sql", "two")
        assert world.book.unload(MODEL, "sql") is first, "the one that requests use"
        world.round(rounds=10)
        assert (first.state, second.state) == (GONE, GONE)

    def test_a_lost_worker_is_not_waited_for(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        registration = world.loaded("sql", "one")
        world.book.unload(MODEL, "sql")
        del world.workers["decode-1"]
        world.round(rounds=20)
        assert registration.state is GONE


class TestTime:
    """What the router has to wake for, and no more."""

    def test_nothing_is_due_for_what_is_fetched_or_ready(self, world: World) -> None:
        world.start("decode-0", fetches=False)
        world.load("sql", "one")
        world.round()
        assert world.book.lifecycle.next_due() is None
        world.workers["decode-0"].fetches = True
        world.loaded("chat", "two")
        assert world.book.lifecycle.next_due() is None

    def test_a_pause_that_waits_for_a_report_is_not_due(self, world: World) -> None:
        world.start("decode-0")
        world.load("sql", "one")
        world.sources.away.add("dir:/sql")
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        assert world.book.lifecycle.next_due() == world.clock.now() + 1.0
        world.clock.advance(1.0)
        world.controller.tick()
        assert world.book.lifecycle.next_due() is None

    def test_what_drains_is_looked_at_each_second_while_it_is_used(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        world.admit("r", digest_of("one"))
        world.book.unload(MODEL, "sql")
        assert world.book.lifecycle.next_due() == world.clock.now() + 1.0
        world.done("r")
        world.round()
        assert world.book.lifecycle.next_due() == world.clock.now() + LINGER_SECONDS

    def test_the_earliest_is_next(self, world: World) -> None:
        world.start("decode-0")
        first, *_ = [world.loaded(name, name) for name in ("sql", "chat", "code")]
        for name in ("sql", "chat", "code"):
            world.book.unload(MODEL, name)
            world.round(0.5)
        assert first.idle_since is not None
        assert world.book.lifecycle.next_due() == first.idle_since + LINGER_SECONDS


class TestKeep:
    def test_it_comes_nearer_and_stays(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        assert registration.near_enough(world.member("decode-0"))
        world.book.keep(world.book.find(MODEL, "sql"), pinned=True)
        (order,) = world.ordered("decode-0")
        assert (order.tier, order.pinned) == (AdapterTier.DRAM, True)
        assert (registration.state, world.member("decode-0").state) == (READY, WorkerState.AVAILABLE)
        assert not registration.near_enough(world.member("decode-0"))
        world.round(rounds=2)
        assert registration.near_enough(world.member("decode-0"))

    def test_a_device_slot_that_was_lost_is_wanted_anew_by_the_next_call(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        asked = []
        for _ in range(2):
            world.book.keep(registration, AdapterTier.DEVICE)
            assert world.heartbeat("decode-0"), "the worker hears of it"
            (order,) = world.ordered("decode-0")
            asked.append((order.tier, order.asked))
        assert asked == [(AdapterTier.DEVICE, 1), (AdapterTier.DEVICE, 2)]
        world.book.keep(registration, AdapterTier.DRAM)
        world.heartbeat("decode-0")
        assert world.ordered("decode-0")[0].asked == 2

    @pytest.mark.parametrize(
        ("tier", "kept_in"),
        [
            (AdapterTier.SOURCE, AdapterTier.DRAM),
            (AdapterTier.DISK, AdapterTier.DRAM),
            (AdapterTier.DRAM, AdapterTier.DRAM),
            (AdapterTier.DEVICE, AdapterTier.DEVICE),
        ],
    )
    @pytest.mark.parametrize("pin_first", [False, True])
    def test_a_prefetch_and_a_pin_leave_each_other_alone(
        self, world: World, tier: AdapterTier, kept_in: AdapterTier, pin_first: bool
    ) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        for pins in (pin_first, not pin_first):
            world.book.keep(registration, None if pins else tier, pinned=True if pins else None)
        (order,) = world.ordered("decode-0")
        assert (order.tier, order.pinned) == (kept_in, True)
        world.book.keep(registration, pinned=False)
        (order,) = world.ordered("decode-0")
        assert (order.tier, order.pinned) == (tier, False), "where it was wanted before"

    def test_a_pin_alone_asks_for_no_other_slot(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        world.book.keep(registration, AdapterTier.DEVICE)
        world.book.keep(registration, pinned=True)
        assert world.ordered("decode-0")[0].asked == 1

    def test_a_pinned_one_is_ready_when_every_worker_has_fetched_it(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        world.workers["decode-1"].fetches = False
        registration = world.load("sql", "one", tier=AdapterTier.SOURCE, pinned=True)
        world.round(rounds=4)
        assert registration.state is FETCHING
        world.workers["decode-1"].fetches = True
        world.round(rounds=2)
        assert registration.state is READY

    @pytest.mark.parametrize(
        ("first", "second", "wanted"),
        [
            ((AdapterTier.DEVICE, False), (AdapterTier.DISK, True), (AdapterTier.DEVICE, True)),
            ((AdapterTier.DISK, True), (AdapterTier.DISK, False), (AdapterTier.DRAM, True)),
            ((AdapterTier.DISK, False), (AdapterTier.DRAM, False), (AdapterTier.DRAM, False)),
        ],
    )
    def test_a_load_that_joins_another_takes_nothing_away(
        self,
        world: World,
        first: tuple[AdapterTier, bool],
        second: tuple[AdapterTier, bool],
        wanted: tuple[AdapterTier, bool],
    ) -> None:
        world.start("decode-0", fetches=False)
        registration = world.load("sql", "one", tier=first[0], pinned=first[1])
        assert world.load("sql", tier=second[0], pinned=second[1]) is registration
        (order,) = world.ordered("decode-0")
        assert (order.tier, order.pinned) == wanted

    def test_a_name_in_the_middle_of_a_swap_is_the_one_that_requests_use(self, world: World) -> None:
        world.start("decode-0")
        first = world.loaded("sql", "one")
        world.load("sql", "two")
        assert world.book.find("", "sql") is first

    def test_one_that_is_draining_has_no_name(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        world.book.unload(MODEL, "sql")
        with pytest.raises(NotFound):
            world.book.find(MODEL, "sql")


class TestNearness:
    def test_who_was_near_enough_for_less_has_to_be_nearer(self, world: World) -> None:
        world.start("prefill-0", "decode-0")
        registration = world.load("a", "one")
        for _ in range(3):
            world.heartbeat("decode-0")
        assert world.member("decode-0").reports[registration.number].tier is AdapterTier.DISK
        world.book.keep(registration, AdapterTier.DRAM)
        for _ in range(3):
            world.heartbeat("prefill-0")
        assert world.member("prefill-0").reports[registration.number].tier is AdapterTier.DRAM
        assert registration.pending
        for _ in range(2):
            world.heartbeat("decode-0")
        assert registration.state is AdapterState.READY

    def test_each_worker_has_to_be_near_once_and_not_all_at_a_time(self, world: World) -> None:
        """A slot that one worker has lost to others meanwhile must not keep a name from getting ready."""
        world.start("decode-0", "decode-1")
        world.sources.content["dir:/sql"] = "one"
        registration = world.book.load(MODEL, AdapterWish("sql", "dir:/sql", AdapterTier.DEVICE))
        far, near = AdapterTier.DISK, AdapterTier.DEVICE
        report = AdapterReport(registration.number, digest_of("one"), 8, 1)
        for tiers in ((near, far), (far, near)):
            assert registration.pending
            for name, tier in zip(("decode-0", "decode-1"), tiers, strict=True):
                member = world.member(name)
                member.hear_reports(AdapterReports((replace(report, tier=tier),)))
                world.book.lifecycle.heard(member)
        assert registration.state is READY


class TestWorkersThatJoin:
    def test_a_later_worker_gets_all_before_it_takes_requests(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        world.loaded("chat", "two")
        world.start("decode-1")
        member = world.member("decode-1")
        assert (member.state, member.reason) == (WorkerState.FETCHING, "it fetches adapters")
        assert len(world.ordered("decode-1")) == 2
        world.heartbeat("decode-1")
        assert world.state("decode-1") is WorkerState.FETCHING
        world.heartbeat("decode-1")
        assert (member.state, member.reason) == (WorkerState.AVAILABLE, "")
        assert world.names().keys() == {"sql", "chat"}

    def test_one_that_cannot_get_an_adapter_takes_requests_of_all_others(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        world.sources.away.add("dir:/sql")
        world.start("decode-1")
        world.heartbeat("decode-1")
        member = world.member("decode-1")
        assert (member.state, member.ruled_out) == (WorkerState.FETCHING, set())
        world.heartbeat("decode-1")
        assert (member.state, member.ruled_out) == (WorkerState.AVAILABLE, {digest_of("one")})
        assert registration.state is READY
        assert registration.pauses[WorkerId("decode-1")].message == "the store is away"
        assert world.member("decode-0").ruled_out == set()
        world.sources.away.clear()
        world.round(rounds=5)
        assert (member.state, member.ruled_out) == (WorkerState.AVAILABLE, set())

    def test_a_wrong_source_of_a_later_worker_fails_nobody_else(self, world: World) -> None:
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        world.sources.wrong.add("dir:/sql")
        world.start("decode-1")
        world.round(rounds=10)
        assert registration.state is READY
        assert world.member("decode-0").state is WorkerState.AVAILABLE
        member = world.member("decode-1")
        assert (member.state, member.ruled_out) == (WorkerState.AVAILABLE, {digest_of("one")})

    def test_an_unload_makes_it_available(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        world.start("decode-1", fetches=False)
        world.book.unload(MODEL, "sql")
        assert world.member("decode-1").state is WorkerState.AVAILABLE

    def test_a_worker_that_joins_in_between_is_waited_for(self, world: World) -> None:
        world.start("decode-0")
        registration = world.load("sql", "one")
        world.heartbeat("decode-0")
        world.start("decode-1", fetches=False)
        world.round(rounds=3)
        assert registration.state is FETCHING
        assert world.member("decode-1").state is WorkerState.AVAILABLE
        world.workers["decode-1"].fetches = True
        world.round()
        assert registration.state is READY

    def test_a_worker_that_leaves_is_not_waited_for(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        world.workers["decode-1"].fetches = False
        registration = world.load("sql", "one")
        world.round(rounds=3)
        assert registration.state is FETCHING
        world.stop("decode-1")
        assert registration.state is READY

    def test_a_lost_worker_that_returns_with_all_takes_requests(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        world.start("decode-1")
        late = world.workers.pop("decode-1")
        world.round(rounds=5)
        assert world.state("decode-1") is WorkerState.LOST
        world.workers["decode-1"] = late
        late.orders = dict(world.workers["decode-0"].orders)  # it had been given them
        world.heartbeat("decode-1")
        assert world.state("decode-1") is WorkerState.AVAILABLE

    def test_a_lost_worker_that_returns_without_it_has_to_wait(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        late = world.workers.pop("decode-1")
        world.round(rounds=5)
        world.loaded("sql", "one")
        world.workers["decode-1"] = late
        world.heartbeat("decode-1")
        assert world.state("decode-1") is WorkerState.FETCHING
        world.heartbeat("decode-1")
        assert world.state("decode-1") is WorkerState.AVAILABLE

    def test_a_suspected_worker_stays_so_when_it_has_all(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        world.start("decode-1")
        member = world.member("decode-1")
        world.round(rounds=2)
        world.controller.worker_failed(member.spec.worker_id, member.spec.epoch, "broken")
        world.book.unload(MODEL, "sql")
        assert world.state("decode-1") is WorkerState.SUSPECT

    def test_a_version_that_no_worker_can_get_does_not_stop_the_others(self, world: World) -> None:
        """All workers are new, and the store is away: requests of the model itself go on, and the name stays
        for those who wait for it."""
        world.start("decode-0")
        registration = world.loaded("sql", "one")
        world.sources.away.add("dir:/sql")
        world.start("decode-0")
        assert world.state("decode-0") is WorkerState.AVAILABLE
        assert world.member("decode-0").ruled_out == {digest_of("one")}
        world.heartbeat("decode-0")
        world.heartbeat("decode-0")
        assert (registration.state, world.names()) == (READY, {"sql": digest_of("one")})
        assert world.state("decode-0") is WorkerState.AVAILABLE
        assert not any(isinstance(effect, RequestPlaced) for effect in world.admit("r", digest_of("one")))
        assert any(isinstance(effect, RequestPlaced) for effect in world.admit("base", BASE_MODEL))
        world.sources.away.clear()
        world.round(rounds=5)
        assert world.member("decode-0").ruled_out == set()
        assert world.controller.running_requests == 2

    def test_the_last_workers_of_a_role_serve_the_model_while_they_fetch(self, world: World) -> None:
        world.start("prefill-0", "decode-0")
        world.loaded("sql", "one")
        world.start("decode-1", fetches=False)
        assert world.state("decode-1") is WorkerState.FETCHING
        world.stop("decode-0")
        member = world.member("decode-1")
        assert (member.state, member.ruled_out) == (WorkerState.AVAILABLE, {digest_of("one")})
        world.start("decode-0")
        world.round(rounds=2)
        assert (member.state, member.ruled_out) == (WorkerState.FETCHING, set())
        member_with_it = world.member("decode-0")
        assert (member_with_it.state, member_with_it.ruled_out) == (WorkerState.AVAILABLE, set())

    @pytest.mark.parametrize("broken", [["decode-0"], ["decode-0", "decode-1"]])
    def test_a_version_that_engines_cannot_load_any_more_takes_no_worker_from_the_model(
        self, world: World, broken: list[str]
    ) -> None:
        """They had it ready. It is tried again and again, and requests of the model itself never wait."""
        world.start("decode-0", "decode-1")
        registration = world.loaded("sql", "one")
        for turn in range(100):
            for name in broken:
                reports = world.workers[name].reports
                if registration.number in reports:
                    before = reports[registration.number]
                    failed = replace(before, error="AdapterUnavailable", message="no memory")
                    reports[registration.number] = failed
            world.round()
            assert {name: world.state(name) for name in world.workers} == {
                "decode-0": WorkerState.AVAILABLE,
                "decode-1": WorkerState.AVAILABLE,
            }
            effects = world.admit(f"base-{turn}", BASE_MODEL)
            assert any(isinstance(effect, RequestPlaced) for effect in effects)
            world.done(f"base-{turn}")
        assert [name for name in world.workers if world.member(name).ruled_out] == broken
        assert registration.state is READY
        world.round(rounds=65)
        assert not any(world.member(name).ruled_out for name in broken), "after its longest pause"


class TestManifest:
    def test_its_adapters_are_loaded(self, world: World) -> None:
        world.sources.content |= {"dir:/a": "one", "dir:/b": "two"}
        world.declared = (AdapterWish("a", "dir:/a"), AdapterWish("b", "dir:/b"))
        world.begin_term(None)
        world.start("decode-0")
        world.round(rounds=2)
        assert world.names() == {"a": digest_of("one"), "b": digest_of("two")}

    def test_a_new_term_gives_each_worker_its_orders_anew(self, world: World) -> None:
        world.start("decode-0")
        world.begin_term(None)
        assert world.book.lifecycle.orders.version(WorkerId("decode-0")) > world.term

    def test_a_reload_adds_removes_and_moves(self, world: World) -> None:
        world.start("decode-0")
        world.sources.content |= {f"dir:/{name}": name for name in "abcd"}
        stays = AdapterWish("stays", "dir:/a")
        world.book.declare(MODEL, (stays, AdapterWish("goes", "dir:/b"), AdapterWish("moves", "dir:/c")))
        world.round(rounds=3)
        assert world.names().keys() == {"stays", "goes", "moves"}
        (kept, *_) = world.book
        world.book.declare(MODEL, (stays, AdapterWish("moves", "dir:/d"), AdapterWish("new", "dir:/b")))
        world.round(rounds=3)
        assert world.names() == {
            "stays": digest_of("a"),
            "moves": digest_of("d"),
            "new": digest_of("b"),
        }
        assert kept in list(world.book)

    def test_pins_change_without_a_load(self, world: World) -> None:
        world.start("decode-0")
        world.sources.content["dir:/a"] = "one"
        world.book.declare(MODEL, (AdapterWish("a", "dir:/a"),))
        world.round(rounds=3)
        (registration,) = world.book
        world.book.declare(MODEL, (AdapterWish("a", "dir:/a", pinned=True),))
        assert list(world.book) == [registration]
        (order,) = world.ordered("decode-0")
        assert (order.tier, order.pinned) == (AdapterTier.DRAM, True)

    def test_what_an_operator_unloaded_stays_so(self, world: World) -> None:
        wishes = (AdapterWish("a", "dir:/a"),)
        world.book.declare(MODEL, wishes)
        world.book.unload(MODEL, "a")
        assert list(world.book) == []
        world.book.declare(MODEL, wishes)
        world.book.declare(MODEL, (AdapterWish("a", "dir:/a", AdapterTier.DRAM),))
        assert list(world.book) == []
        world.declared = wishes
        world.begin_term(world.book.snapshot())
        assert list(world.book) == []
        world.book.declare(MODEL, (AdapterWish("a", "dir:/other"),))
        assert len(list(world.book)) == 1, "that is another adapter"

    def test_what_an_operator_loaded_stays_when_the_manifest_forgets_its_own(self, world: World) -> None:
        world.start("decode-0")
        world.book.declare(MODEL, (AdapterWish("sql", "dir:/a"),))
        mine = world.loaded("sql", "two")
        world.book.declare(MODEL, ())
        assert mine.state is READY

    def test_one_that_is_taken_out_before_it_was_ready(self, world: World) -> None:
        world.start("decode-0")
        world.book.declare(MODEL, (AdapterWish("a", "dir:/a"),))
        (registration,) = world.book
        world.book.declare(MODEL, ())
        assert registration.message == "adapter a was taken out of the manifest"

    def test_without_a_manifest_there_is_no_model(self, world: World) -> None:
        membership = world.controller.membership
        book = AdapterBook(world.clock, membership, lambda digest: 0)
        with pytest.raises(InvalidRequest, match="none yet"):
            book.unload("", "sql")


class TestHeartbeats:
    def test_orders_are_sent_once(self, world: World) -> None:
        world.start("decode-0")
        for number in range(100):
            world.load(f"a{number}", "one")
        assert world.heartbeat("decode-0")
        world.round(rounds=3)
        assert not world.heartbeat("decode-0")

    def test_a_new_worker_is_told_even_that_it_holds_nothing(self, world: World) -> None:
        """It may hold what an earlier router ordered."""
        world.start("decode-0")
        assert world.heartbeat("decode-0")
        assert not world.heartbeat("decode-0")

    def test_a_change_for_one_worker_is_no_news_for_another(self, world: World) -> None:
        world.start("decode-0", "decode-1")
        world.round()
        world.load("sql", "one")
        assert not world.heartbeat("decode-1")

    def test_the_same_names_are_the_same_object(self, world: World) -> None:
        world.start("decode-0")
        world.loaded("sql", "one")
        names = world.book.names()
        world.load("chat", "two")
        assert world.book.names() is names
        world.round(rounds=2)
        assert world.book.names() is not names

    def test_an_unknown_worker_has_no_orders(self, world: World) -> None:
        orders, worker_id = world.book.lifecycle.orders, WorkerId("decode-9")
        assert (orders.version(worker_id), orders.unresolved(worker_id)) == (0, 0)
        assert orders.orders(worker_id) == ()
