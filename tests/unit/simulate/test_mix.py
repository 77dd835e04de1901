"""Requests made up from a few figures."""

import random
from collections import Counter

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import TenantId
from llmserve.simulate.mix import REQUEST_KINDS, RequestKind, RequestMix, parse_kind, parse_part

A, B = TenantId("a"), TenantId("b")


def test_rate_parts_and_sizes_are_as_asked() -> None:
    mix = RequestMix([(RequestKind(100, 10), 1), (RequestKind(1000, 50), 3)], [(A, 4), (B, 1)], 50.0, 100.0)
    requests = mix.requests(random.Random(1))
    assert len(requests) == pytest.approx(5000, rel=0.05)
    tenants = Counter(request.tenant for request in requests)
    assert tenants[A] / tenants[B] == pytest.approx(4, rel=0.1)
    long = [request for request in requests if request.prompt_tokens >= 500]
    assert len(long) / len(requests) == pytest.approx(0.75, rel=0.05)
    assert max(request.prompt_tokens for request in requests) <= 1500
    assert requests == sorted(requests, key=lambda request: request.arrived_at)


def test_the_same_seed_gives_the_same_requests() -> None:
    mix = RequestMix([(REQUEST_KINDS["short"], 1)], [(A, 1)], 5.0, 10.0)
    assert mix.requests(random.Random(3)) == mix.requests(random.Random(3))


def test_a_tenants_prompts_begin_alike() -> None:
    mix = RequestMix([(RequestKind(100, 10), 1)], [(A, 1), (B, 1)], 20.0, 5.0, shared_tokens=64)
    requests = mix.requests(random.Random(1))
    names = {(request.tenant, request.prefix_names, request.run_tokens) for request in requests}
    assert names == {(A, (0,), 64), (B, (1,), 64)}
    assert min(request.prompt_tokens for request in requests) >= 64 + 50


def test_kinds_and_parts_are_read() -> None:
    assert parse_kind("long:30") == (REQUEST_KINDS["long"], 30.0)
    assert parse_kind("1000/200:7.5") == (RequestKind(1000, 200), 7.5)
    assert parse_part("--tenants", "a=4") == (A, 4.0)


@pytest.mark.parametrize(
    "text", ["long", "huge:3", "long:x", "long:0", "long:inf", "long:nan", "10/0:1", "10/x:1"]
)
def test_a_wrong_kind_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"--mix '{text}'"):
        parse_kind(text)


@pytest.mark.parametrize("text", ["a", "=4", "a=x", "a=0", "a=inf", "a=nan"])
def test_a_wrong_part_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"--weights '{text}'"):
        parse_part("--weights", text)
