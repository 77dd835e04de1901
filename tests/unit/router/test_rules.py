"""Rules that are made again: what goes on, and what is new."""

import random
from collections.abc import Callable

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.router.filters import NotBackedUp, PlacementRequest
from llmserve.router.kv_aware import KvAware
from llmserve.router.pace import Paces
from llmserve.router.plan import Disaggregate
from llmserve.router.rules import PlacementPolicy, RuleBook
from llmserve.router.slow import SlowBook, SlowLimits
from llmserve.router.worker import Member, Seats, WorkerSpec


@pytest.fixture
def rule_book(clock: VirtualClock) -> RuleBook:
    return RuleBook(clock, random.Random(1), Paces(), SlowBook(clock, SlowLimits()))


def test_a_chooser_goes_on_while_the_routing_stays_the_same(rule_book: RuleBook) -> None:
    """It knows whose turn it is."""
    before = rule_book.rules(PlacementPolicy("round_robin"))
    after = rule_book.rules(PlacementPolicy("round_robin", Disaggregate.NEVER, 2.0))
    assert after.chooser is before.chooser
    assert (before.disaggregate, after.disaggregate) == (Disaggregate.AUTO, Disaggregate.NEVER)


def test_another_routing_has_another_chooser(rule_book: RuleBook) -> None:
    before = rule_book.rules(PlacementPolicy("round_robin")).chooser
    assert isinstance(rule_book.rules(PlacementPolicy("kv_aware")).chooser, KvAware)
    again = rule_book.rules(PlacementPolicy("round_robin")).chooser
    assert type(again) is type(before)
    assert again is not before, "whose turn it was long ago says nothing"


def test_the_bound_of_an_engines_queue_is_the_new_one(
    rule_book: RuleBook, clock: VirtualClock, make_spec: Callable[..., WorkerSpec]
) -> None:
    member = Member(make_spec("prefill-0"), Seats(), heard_at=0.0)
    for name in "ab":
        member.seats.backlog.add(name, 0.5, clock.now())
    for bound_seconds, taken in ((0.9, False), (1.1, True)):
        filters = rule_book.rules(PlacementPolicy(engine_queue_seconds=bound_seconds)).filters
        (backed_up,) = (one for one in filters if isinstance(one, NotBackedUp))
        assert bool(backed_up.keep([member], PlacementRequest("m"))) is taken
