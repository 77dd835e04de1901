"""The time on the link that KV takes between engines, and a rate as time spent."""

from dataclasses import replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.budgets import NO_WAIT
from llmserve.scheduler.kv_io import KvIoBudget, Spend
from llmserve.scheduler.request import QueuedRequest


def _request(name: str, prompt: int = 0, model: str = "") -> QueuedRequest:
    return QueuedRequest(RequestId(name), TenantId("t"), 0.0, 1.0, prompt_tokens=prompt, model=model)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(50.0)


def test_kv_is_handed_over_at_the_rate(clock: VirtualClock) -> None:
    """10 bytes a token, 1,000 bytes a second: 100 tokens take a second, and one second is saved up."""
    budget = KvIoBudget(clock)
    budget.set_limit(1000.0, {"": 10.0})
    budget.reserve(_request("a", prompt=100))
    assert budget.fits(_request("b"))
    budget.reserve(_request("b", prompt=300))
    assert not budget.fits(_request("c"))
    assert budget.wait(_request("c"), 5).seconds == pytest.approx(3.0)
    assert budget.wait(_request("c"), 5).sure
    budget.release(_request("a"), 0)
    clock.advance(2.9)
    assert not budget.fits(_request("c"))
    clock.advance(0.1)
    assert budget.fits(_request("c"))


@pytest.mark.parametrize("sizes", [{"": 10.0}, {"": 10.0, "whole": 0.0}])
def test_a_model_that_hands_nothing_over_waits_for_no_link(
    clock: VirtualClock, sizes: dict[str, float]
) -> None:
    budget = KvIoBudget(clock)
    budget.set_limit(1000.0, sizes)
    budget.reserve(_request("a", prompt=500))
    whole = _request("b", prompt=500, model="whole")
    assert (budget.fits(whole), budget.full_for_all(whole), budget.wait(whole, 3)) == (True, False, NO_WAIT)
    assert not budget.fits(_request("c"))


def test_a_rate_is_kept_over_any_time() -> None:
    spend, now, begun = Spend(), 0.0, 0.0
    while now < 30.0:
        while not spend.wait_seconds(now):
            spend.take(0.25, now)
            begun += 0.25
        assert begun <= now + Spend.burst_seconds + 0.25 + 1e-6
        now += 0.1
    assert begun >= 30.0


def test_the_link_is_busy_for_as_long_as_its_bytes_take(clock: VirtualClock) -> None:
    link = KvIoBudget(clock)
    assert (link.used_ratio, link.wait(_request("a"), 0).seconds, link.snapshot()) == (None, 0.0, None)
    link.set_limit(1000.0, {"": 10.0})
    assert link.used_ratio == 0.0
    link.reserve(_request("a", prompt=150))  # 1.5 s of the link, of which 1 s was saved up
    assert link.used_ratio == 1.5
    assert (link.fits(_request("b")), link.wait(_request("b"), 3).sure) == (False, True)
    assert link.wait(_request("b"), 3).seconds == pytest.approx(0.5)
    assert link.snapshot() == pytest.approx(0.5)
    clock.advance(0.5)
    assert link.fits(_request("b"))
    link.release(_request("a"), 0)
    assert link.used_ratio == pytest.approx(1.0), "what has moved has moved"
    clock.advance(7.0)
    assert (link.used_ratio, link.snapshot()) == (0.0, None)


def test_what_an_earlier_router_sent_takes_no_time_again(clock: VirtualClock) -> None:
    link = KvIoBudget(clock)
    link.set_limit(1000.0, {"": 10.0})
    link.reserve(replace(_request("a", prompt=150), charged=True))
    assert link.used_ratio == 0.0


def test_a_spend_that_is_restored_is_where_it_was() -> None:
    spend = Spend()
    assert spend.ahead_seconds(10.0) is None
    spend.take(3.0, 10.0)
    assert spend.ahead_seconds(10.0) == 2.0
    assert Spend.restored(2.0, 50.0).wait_seconds(50.0) == 2.0
    assert Spend.restored(None, 50.0).ahead_seconds(50.0) is None
    assert Spend.restored(1e-6, 0.0).wait_seconds(0.0) == 0.0, "a microsecond is no wait"
    spend.give_back(0.5)
    assert (spend.wait_seconds(10.0), spend.used_seconds(10.0)) == (1.5, 2.5)
    assert spend.wait_seconds(11.5) == 0.0
    assert spend.ahead_seconds(12.5) is None, "all is saved up again"
