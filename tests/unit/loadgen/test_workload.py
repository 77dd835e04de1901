"""Kinds, tenants and conversations."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.loadgen.load import Load, divided
from llmserve.loadgen.workload import (
    AdapterMix,
    Conversation,
    LoadKind,
    Mix,
    PromptPiece,
    Tenant,
    limited,
    of_trace,
    parse_kind,
    parse_tenant,
    parse_weight,
)
from llmserve.traces import TracedRequest


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("short:70", LoadKind("short", 200, 60, 70.0)),
        ("long", LoadKind("long", 4000, 500, 1.0)),
        ("long=4000/100:30", LoadKind("long", 4000, 100, 30.0)),
        ("300/20:0.5", LoadKind("300/20", 300, 20, 0.5)),
    ],
)
def test_kinds(text: str, kind: LoadKind) -> None:
    assert parse_kind(text) == kind


@pytest.mark.parametrize(
    "text", ["huge:1", "short:0", "short:x", "a=4000:1", "a=0/5:1", "a=5/x:1", "short:inf", ""]
)
def test_a_wrong_kind_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_kind(text)
    assert repr(text) in caught.value.message


def test_tenants_have_keys_that_may_contain_anything() -> None:
    assert parse_tenant("gold=sk=a:b", {}) == Tenant("gold", "sk=a:b", 1.0)
    assert parse_tenant("gold:4=@KEY", {"KEY": "secret"}) == Tenant("gold", "secret", 4.0)


@pytest.mark.parametrize("text", ["gold", "=key", "gold=", "gold:0=key", "gold=@NONE"])
def test_a_wrong_tenant_is_refused_without_its_key(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_tenant(text, {})
    assert "=key" not in caught.value.message


def test_weights() -> None:
    assert parse_weight("gold=4") == ("gold", 4.0)
    for text in ("gold", "=4", "gold=0", "gold=x"):
        with pytest.raises(InvalidRequest, match="--weights"):
            parse_weight(text)


KINDS = (LoadKind("long", 400, 20, 30), LoadKind("short", 20, 5, 70))
TENANTS = (Tenant("a", None, 3.0), Tenant("b", None, 1.0))


def take(mix: Mix, count: int) -> list[Conversation]:
    return list(itertools.islice(mix.conversations(random.Random(1)), count))


def test_kinds_and_tenants_come_by_their_parts_with_exact_sizes() -> None:
    made = take(Mix(KINDS, TENANTS), 4000)
    kinds, tenants = Counter(one.kind for one in made), Counter(one.tenant for one in made)
    assert abs(kinds["long"] / 4000 - 0.30) < 0.03
    assert abs(tenants["a"] / 4000 - 0.75) < 0.03
    assert {one.turns[0].prompt_tokens for one in made if one.kind == "long"} == {400}
    assert {one.turns[0].output_tokens for one in made} == {20, 5}


def test_the_same_seed_gives_the_same_load() -> None:
    assert take(Mix(KINDS, TENANTS, spread=0.5), 20) == take(Mix(KINDS, TENANTS, spread=0.5), 20)


def test_sizes_spread_within_their_share_and_are_never_0() -> None:
    sizes = {one.turns[0].prompt_tokens for one in take(Mix(KINDS[:1], TENANTS, spread=0.5), 2000)}
    assert min(sizes) == 200
    assert max(sizes) == 600
    tiny = Mix((LoadKind("tiny", 1, 1, 1.0),), TENANTS, spread=1.0)
    assert min(one.turns[0].output_tokens for one in take(tiny, 50)) == 1


def test_no_two_prompts_are_alike_but_for_the_shared_prefix() -> None:
    made = take(Mix(KINDS, TENANTS, turns=2, shared_tokens=100, prefixes=3), 200)
    openings = Counter(one.turns[0].prompt[0].name for one in made)
    own = [turn.prompt[-1].name for one in made for turn in one.turns]
    assert set(openings) == {"prefix0", "prefix1", "prefix2"}
    assert len(set(own)) == len(own)
    assert all(len(one.turns[1].prompt) == 1 for one in made)


def test_a_trace_says_which_prefixes_are_alike() -> None:
    first, second = of_trace([
        TracedRequest(0.0, 1100, 5, prefix_names=(7, 8, 9), run_tokens=512),
        TracedRequest(2.0, 600, 5, prefix_names=(7,), run_tokens=512),
    ])  # fmt: skip
    assert first.turns[0].prompt == (PromptPiece("t7", 512), PromptPiece("t8", 512), PromptPiece("t9", 76))
    assert second.turns[0].prompt == (PromptPiece("t7", 512), PromptPiece("c1", 88))
    assert second.starts_at == 2.0


def test_names_beyond_the_prompt_of_a_trace_are_left_out() -> None:
    (one,) = of_trace([TracedRequest(0.0, 512, 5, prefix_names=(1, 2, 3), run_tokens=512)])
    assert one.turns[0].prompt_tokens == 512


def test_a_load_ends_by_count_or_by_time() -> None:
    trace = [TracedRequest(float(second), 10, 1) for second in range(10)]
    assert len(list(limited(of_trace(trace), 3, None))) == 3
    assert [one.starts_at for one in limited(of_trace(trace), None, 2.0)] == [0.0, 1.0]
    load = Load(Mix(KINDS, TENANTS), seed=3, rate=50.0, burstiness=0.0, seconds=1.0)
    assert len(list(load.scheduled())) == 49
    assert all(0 < one.starts_at < 1 for one in load.scheduled())


def test_users_of_a_closed_loop_are_divided_by_parts_and_talk_for_one_tenant() -> None:
    users = Load(Mix(KINDS, TENANTS), seed=3, concurrency=8).users()
    assert [one.count for one in users] == [6, 2]
    assert [next(one.conversations).tenant for one in users] == ["a", "b"]
    assert divided(2, (1, 1, 1)) == [1, 1, 1]
    assert sum(divided(10, (1, 1, 1))) == 10


def test_warming_sends_short_answers_and_prompts_that_the_load_does_not_have() -> None:
    load = Load(Mix(KINDS, TENANTS, turns=3, shared_tokens=50), seed=3)
    (users,) = load.warming(2)
    one = next(users.conversations)
    assert len(one.turns) == 1
    assert one.turns[0].output_tokens == 16
    assert one.turns[0].prompt[0].name.startswith("warm ")
    assert load.warming(0) == []


def test_a_load_says_what_it_is() -> None:
    mix = Mix(KINDS, TENANTS, turns=2, spread=0.1, shared_tokens=50)
    said = Load(mix, seed=1, rate=3.0, seconds=9.0).describe()
    assert said == (
        "mix long=400/20:30 short=20/5:70 +-10%, 50 shared tokens (1), 2 turns, "
        "open loop of 3/s, burstiness 1, 9 s"
    )
    assert "closed loop of 4 users, 7 conversations" in Load(mix, 1, concurrency=4, count=7).describe()


# -- adapters


def adapters_of(load: Load, count: int = 1000) -> list[str]:
    return [one.adapter for one in itertools.islice(load.users()[0].conversations, count)]


def with_adapters(zipf: float, names: tuple[str, ...] = ("x", "y", "z")) -> Load:
    return Load(Mix(KINDS, TENANTS[:1]), seed=1, adapters=AdapterMix(names, zipf))


@pytest.mark.parametrize(
    ("zipf", "shares"),
    [(0.0, (1 / 3, 1 / 3, 1 / 3)), (1.0, (6 / 11, 3 / 11, 2 / 11)), (2.0, (36 / 49, 9 / 49, 4 / 49))],
)
def test_adapters_are_wanted_by_rank(zipf: float, shares: tuple[float, ...]) -> None:
    found = Counter(adapters_of(with_adapters(zipf), 4000))
    for name, share in zip("xyz", shares, strict=True):
        assert found[name] / 4000 == pytest.approx(share, abs=0.03)


def test_the_prompts_are_the_same_with_adapters_and_without() -> None:
    """So runs with and without them can be compared."""
    mixed = with_adapters(1.0)
    plain = replace(mixed, adapters=None)
    assert set(adapters_of(plain, 10)) == {""}
    for load in (mixed, replace(mixed, rate=5.0, count=20)):
        without = replace(load, adapters=None)
        pairs = zip(conversations(load), conversations(without), strict=True)
        assert all(replace(one, adapter="") == other for one, other in pairs)
    assert adapters_of(mixed, 50) == adapters_of(mixed, 50), "the same seed, the same adapters"
    assert "3 adapters, zipf 1, closed loop" in mixed.describe()


def conversations(load: Load) -> list[Conversation]:
    return list(load.scheduled() if load.is_open else itertools.islice(load.users()[0].conversations, 20))


def test_a_trace_has_adapters_too() -> None:
    trace = [TracedRequest(float(at), 10, 5) for at in range(3)]
    load = Load(Mix(KINDS, TENANTS), seed=1, trace=trace, adapters=AdapterMix(("x",), 1.0))
    assert [(one.adapter, one.starts_at) for one in load.scheduled()] == [("x", 0.0), ("x", 1.0), ("x", 2.0)]
