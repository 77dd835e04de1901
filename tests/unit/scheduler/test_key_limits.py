"""The limits of a key in the whole cluster."""

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import Overloaded
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.key_limits import NO_LIMITS, KeyBudgets, KeyLimits
from llmserve.scheduler.request import QueuedRequest


def request(name: str, prompt: int = 10, choices: int = 1, cached: int = 0) -> QueuedRequest:
    return QueuedRequest(
        RequestId(name),
        TenantId("t"),
        arrived_at=0.0,
        deadline=1.0,
        prompt_tokens=prompt,
        cached_tokens=cached,
        choices=choices,
    )


def ids(*names: str) -> frozenset[RequestId]:
    return frozenset(map(RequestId, names))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(50.0)


@pytest.fixture
def keys(clock: VirtualClock) -> KeyBudgets:
    return KeyBudgets(clock)


def refused(keys: KeyBudgets, limits: KeyLimits, choices: int = 1) -> Overloaded:
    refusal = keys.refusal(limits, choices)
    assert refusal is not None
    return refusal


@pytest.mark.parametrize(
    ("limits", "has_some"),
    [
        (NO_LIMITS, False),
        (KeyLimits("k"), False),
        (KeyLimits(requests_per_second=1.0), False),
        (KeyLimits("k", requests_per_second=1.0), True),
        (KeyLimits("k", tokens_per_second=1.0), True),
        (KeyLimits("k", max_requests_in_flight=1), True),
    ],
)
def test_what_has_a_limit(limits: KeyLimits, has_some: bool) -> None:
    assert bool(limits) is has_some


def test_a_key_without_limits_is_not_counted(keys: KeyBudgets) -> None:
    keys.take(request("a"), KeyLimits("k"))
    keys.used(RequestId("a"), 7)
    keys.check_integrity(ids())
    assert repr(keys) == "<KeyBudgets {}>"
    keys.release(RequestId("a"), 7)


def test_requests_per_second(keys: KeyBudgets, clock: VirtualClock) -> None:
    """4 in a second: a second is saved up, and one more may begin ahead of it."""
    limits, others = KeyLimits("k", requests_per_second=4.0), KeyLimits("other", requests_per_second=4.0)
    for name in "abcde":
        assert keys.refusal(limits, 1) is None
        keys.take(request(name), limits)
        keys.release(RequestId(name))  # what has ended was a request all the same
    refusal = refused(keys, limits)
    assert refusal.retry_after_seconds == pytest.approx(0.25)
    assert refusal.message == "the key has used up its 4 requests per second"
    assert keys.refusal(others, 1) is None
    clock.advance(0.25)
    assert keys.refusal(limits, 1) is None


def test_each_choice_is_a_request(keys: KeyBudgets) -> None:
    limits = KeyLimits("k", requests_per_second=2.0)
    keys.take(request("a", choices=5), limits)
    assert refused(keys, limits).retry_after_seconds == pytest.approx(1.5)


def test_tokens_per_second_are_those_of_the_prompt_and_then_those_of_the_answer(
    keys: KeyBudgets, clock: VirtualClock
) -> None:
    limits = KeyLimits("k", tokens_per_second=10.0)
    keys.take(request("a", prompt=50, cached=40), limits)
    assert keys.refusal(limits, 1) is None  # what was saved up
    keys.used(RequestId("a"), 20)
    assert refused(keys, limits).message == "the key has used up its 10 tokens per second"
    assert refused(keys, limits).retry_after_seconds == pytest.approx(2.0)
    keys.used(RequestId("a"), 15)  # an older report
    assert refused(keys, limits).retry_after_seconds == pytest.approx(2.0)
    keys.release(RequestId("a"), 30)
    assert refused(keys, limits).retry_after_seconds == pytest.approx(3.0)
    keys.release(RequestId("a"), 90)
    clock.advance(3.0)
    assert keys.refusal(limits, 1) is None


def test_a_request_that_ends_without_an_answer_used_its_prompt_alone(keys: KeyBudgets) -> None:
    limits = KeyLimits("k", tokens_per_second=10.0)
    keys.take(request("a", prompt=20), limits)
    keys.release(RequestId("a"))
    assert refused(keys, limits).retry_after_seconds == pytest.approx(1.0)


def test_what_was_saved_up_before_an_answer_ends_is_at_most_a_second(
    keys: KeyBudgets, clock: VirtualClock
) -> None:
    limits = KeyLimits("k", tokens_per_second=10.0)
    keys.take(request("a", prompt=10), limits)
    clock.advance(100.0)
    keys.release(RequestId("a"), 30)
    assert refused(keys, limits).retry_after_seconds == pytest.approx(2.0)


def test_requests_in_flight(keys: KeyBudgets, clock: VirtualClock) -> None:
    limits = KeyLimits("k", max_requests_in_flight=3)
    keys.take(request("a", choices=2), limits)
    assert keys.refusal(limits, 1) is None
    refusal = refused(keys, limits, choices=2)
    assert refusal.message == "the key has 2 requests in flight, and may have 3"
    assert refusal.retry_after_seconds == 30.0  # none has ended yet
    keys.take(request("b"), limits)
    clock.advance(4.0)
    keys.release(RequestId("a"))
    assert keys.refusal(limits, 2) is None
    assert refused(keys, limits, choices=3).retry_after_seconds == pytest.approx(6.0)  # 2 in 4 s
    keys.release(RequestId("b"))
    keys.release(RequestId("b"))
    assert keys.refusal(limits, 3) is None
    assert refused(keys, limits, choices=4).retry_after_seconds == 30.0
    keys.check_integrity(ids())


def test_the_limits_of_the_latest_request_hold(keys: KeyBudgets) -> None:
    keys.take(request("a"), KeyLimits("k", max_requests_in_flight=5))
    refused(keys, KeyLimits("k", max_requests_in_flight=1))
    assert keys.refusal(KeyLimits("k", requests_per_second=1.0), 1) is None


def test_what_comes_again_is_counted_and_not_charged(keys: KeyBudgets) -> None:
    limits = KeyLimits("k", requests_per_second=0.1, tokens_per_second=1.0, max_requests_in_flight=1)
    keys.take(request("a"), limits, charged=True)
    assert refused(keys, limits).message.startswith("the key has 1 requests in flight")
    keys.release(RequestId("a"))
    assert keys.refusal(limits, 1) is None


def test_the_next_leader_goes_on_with_what_was_used(keys: KeyBudgets, clock: VirtualClock) -> None:
    limits = KeyLimits("k", requests_per_second=0.5)
    keys.take(request("a"), limits)
    keys.take(request("b", prompt=70), KeyLimits("l", tokens_per_second=10.0))
    keys.take(request("c"), KeyLimits("idle", requests_per_second=100.0, tokens_per_second=1000.0))
    clock.advance(0.5)
    snapshot = keys.snapshot()
    requests, tokens = snapshot["the key's requests per second"], snapshot["the key's tokens per second"]
    assert requests == {"k": pytest.approx(0.5)}
    assert tokens == {"l": pytest.approx(5.5)}
    later = KeyBudgets(clock)
    later.restore({**snapshot, "of another budget": {TenantId("k"): 9.0}})
    assert refused(later, limits).retry_after_seconds == pytest.approx(0.5)
    refusal = refused(later, KeyLimits("l", tokens_per_second=10.0))
    assert refusal.retry_after_seconds == pytest.approx(5.5)
    later.restore({})
    assert later.refusal(limits, 1) is None


def test_keys_that_have_saved_up_all_are_forgotten(keys: KeyBudgets, clock: VirtualClock) -> None:
    """An issuer of tokens may have any number of subjects."""
    late = KeyLimits("late", requests_per_second=0.001)
    keys.take(request("late"), late)
    for number in range(3000):
        keys.take(request(f"r{number}"), KeyLimits(f"k{number}", requests_per_second=1000.0))
        keys.release(RequestId(f"r{number}"))
        clock.advance(0.01)
    assert len(keys._requests) < 1200
    assert refused(keys, late).retry_after_seconds == pytest.approx(969.0, abs=1.5)


def test_a_request_is_counted_once(keys: KeyBudgets) -> None:
    limits = KeyLimits("k", max_requests_in_flight=3)
    keys.take(request("a", choices=2), limits)
    keys.check_integrity(ids("a", "b"))
    assert repr(keys) == "<KeyBudgets {'k': 2}>"
    with pytest.raises(AssertionError, match="taken twice"):
        keys.take(request("a"), limits)
    with pytest.raises(AssertionError):
        keys.check_integrity(ids("b"))
    keys._count["k"] += 1
    with pytest.raises(AssertionError):
        keys.check_integrity(ids("a"))
    keys._count["k"] -= 1
    del keys._ends["k"]
    with pytest.raises(AssertionError):
        keys.check_integrity(ids("a"))
