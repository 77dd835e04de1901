"""Statistics of records whose figures are known."""

from dataclasses import replace

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.core.stats import Percentiles, jain
from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.report import About, LoadReport, Slo, fairness, make_report
from tests.unit.loadgen.records import failed, served

ABOUT = About("http://x", "m", "a load", 1, "token ids", "2026-01-01T00:00:00+00:00")


def report(records: list[LoadRecord], slo: str = "") -> LoadReport:
    return make_report(records, ABOUT, Slo.parse(slo), {})


def test_figures_of_served_requests() -> None:
    found = report([served(0.0, 0.5, (0.1, 0.3)), served(1.0, 1.5, (0.2,)), failed(planned=1.0)])
    assert (found.requests, found.served, found.seconds) == (3, 2, 2.7)
    assert found.ttft.mean == pytest.approx(1.0)
    assert found.itl.mean == pytest.approx(0.2)
    assert found.tpot.mean == pytest.approx(0.2)
    assert found.e2e.most == pytest.approx(1.7)
    assert found.output_tokens == 5
    assert found.output_tokens_per_second == pytest.approx(5 / 2.7)
    assert found.total_tokens_per_second == pytest.approx(25 / 2.7)


def test_several_tokens_in_one_arrival_count_for_the_time_per_token() -> None:
    found = report([served(0.0, 0.5, (0.4,), output_tokens=9)])
    assert found.itl.mean == pytest.approx(0.4)
    assert found.tpot.mean == pytest.approx(0.05)


def test_what_a_user_waits_counts_from_the_planned_time() -> None:
    """A stall of the endpoint or of this process is in the figures of all that should have been sent."""
    late = LoadRecord(0, 0, "k", "t", 1.0, 3.0, 3.5, 4.0, 4.0, 10, 2, 10, 2)
    found = report([late])
    assert (found.ttft.p50, found.e2e.p50, found.late.p50) == (2.5, 3.0, 2.0)
    assert "2000 ms late" in found.notes[0]


def test_goodput_is_of_requests_that_meet_every_limit() -> None:
    records = [served(0.0, 0.5, (0.1,)), served(0.0, 1.5, (0.1,)), served(0.0, 0.5, (0.9,)), failed()]
    assert report(records).good == 3
    assert report(records, "ttft=1").good == 2
    assert report(records, "ttft=1,itl=0.5").good == 1
    assert report(records, "e2e=0.65").good == 1
    assert report(records, "ttft=1").good_per_second == pytest.approx(2 / 1.6)


@pytest.mark.parametrize("text", ["ttft", "ttft=0", "ttft=x", "speed=1", "met=1"])
def test_a_wrong_limit_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--slo"):
        Slo.parse(text)


def test_failures_by_kind_with_what_the_first_said() -> None:
    found = report([failed("full"), failed("fuller"), failed("away", 503)])
    assert [(one.label, one.count, one.message) for one in found.failures] == [
        ("HTTP 429", 2, "full"),
        ("HTTP 503", 1, "away"),
    ]
    assert found.seconds == 0.1
    assert found.ttft == Percentiles()


def test_no_requests_at_all() -> None:
    assert report([]).requests_per_second == 0.0


def test_groups_by_kind_and_tenant() -> None:
    found = report([served(kind="long", tenant="a"), served(kind="short", tenant="b"), served(tenant="b")])
    assert [(one.name, one.served) for one in found.kinds] == [("long", 1), ("short", 2)]
    assert [(one.name, one.served) for one in found.tenants] == [("a", 1), ("b", 2)]


def test_other_lengths_than_wanted_are_said() -> None:
    notes = report([served(prompt_tokens=13)]).notes
    assert notes == ("prompts had 13 tokens as the endpoint counts, and 10 were wanted",)


def test_jains_index() -> None:
    assert jain([1.0, 1.0]) == 1.0
    assert jain([1.0, 0.0]) == 0.5
    assert jain([]) == 1.0


def crowd(tenant: str, tokens: int) -> list[LoadRecord]:
    """One that waits from 0 to 10 s, and one that gets these tokens in second 4."""
    return [
        served(0.0, 10.5, (), tenant=tenant),
        served(0.0, 4.2, (), tenant=tenant, output_tokens=tokens, prompt_tokens=0),
    ]


def test_fairness_counts_while_requests_of_all_wait() -> None:
    found = fairness([*crowd("a", 300), *crowd("b", 100)], {})
    assert found.contended_seconds == 10
    assert found.tokens == {"a": 300, "b": 100}
    assert found.jain == pytest.approx(0.8)


def test_fairness_is_for_the_weight() -> None:
    assert fairness([*crowd("a", 300), *crowd("b", 100)], {"a": 3.0}).jain == pytest.approx(1.0)


def test_there_is_no_fairness_of_one_tenant_or_of_plenty() -> None:
    assert fairness(crowd("a", 5), {}).jain is None
    apart = [served(0.0, 3.0, tenant="a"), served(5.0, 3.0, tenant="b")]
    assert fairness(apart, {}).jain is None
    assert fairness([], {}).contended_seconds == 0


def test_one_that_is_refused_waits_until_then() -> None:
    assert fairness([failed(tenant="a"), *crowd("b", 5)], {}).contended_seconds == 0


def test_requests_that_use_an_adapter_first_are_told_from_later_ones() -> None:
    """Those that were sent before its first token are first uses, too: they waited for the same load."""
    found = report(
        [
            served(0.0, 2.0, adapter="x"),
            served(1.0, 1.5, adapter="x"),
            served(2.5, 0.5, adapter="x"),
            served(2.5, 4.0, adapter="y"),
            served(9.0, 0.1),
        ]
    )
    assert [(one.name, one.requests, one.ttft.most) for one in found.adapters] == [
        ("first use", 3, 4.0),
        ("later use", 1, 0.5),
    ]
    assert report([served()]).adapters == ()


def test_an_adapter_that_never_answered_has_had_no_later_use() -> None:
    lost = [replace(failed(planned=at), adapter="x") for at in (0.0, 1.0)]
    assert [(one.name, one.requests, one.served) for one in report(lost).adapters] == [("first use", 2, 0)]
