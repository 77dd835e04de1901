"""What differs between two clusters, and its page."""

import random
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.comparison import (
    Comparison,
    ComparisonFinding,
    Contrast,
    Round,
    _quantile,
    contrasts,
    verdict,
)
from llmserve.loadgen.comparison_page import comparison_page, ratio_row
from llmserve.loadgen.report import About, Slo, make_report
from llmserve.plot import interval_plot
from tests.unit.loadgen.records import failed, served


def drawn_turn(rng: random.Random, factor: float, requests: int = 60) -> list[LoadRecord]:
    return [
        served(0.1 * n, factor * rng.lognormvariate(-1.0, 0.3), (0.05, 0.05), conversation=n)
        for n in range(requests)
    ]


def rounds(factor: float, count: int = 3) -> list[Round]:
    rng = random.Random(5)
    return [Round(drawn_turn(rng, 1.0), drawn_turn(rng, factor), 10.0, 10.0) for _ in range(count)]


def named(found: list[Contrast], figure: str) -> Contrast:
    return next(one for one in found if one.figure == figure)


def test_a_real_difference_is_found_with_an_interval_that_holds_it() -> None:
    found = contrasts(rounds(0.5), resamples=300)
    median = named(found, "time to first token, median")
    assert median.low < 0.5 < median.high
    assert median.finding is ComparisonFinding.BETTER
    assert named(found, "time per output token, mean").finding is ComparisonFinding.SAME
    said = verdict(found, "agg", "disagg", 3)
    assert said.startswith("On this load disagg is better than agg: time to first token, median -")


def test_no_difference_is_not_one() -> None:
    found = contrasts(rounds(1.0), resamples=300)
    assert named(found, "time to first token, median").finding is ComparisonFinding.SAME
    assert (
        verdict(found, "agg", "disagg", 3) == "No difference between agg and disagg was shown on this load."
    )


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits = random.Random(11), 0
    for _ in range(15):
        runs = [Round(drawn_turn(rng, 1.0, 30), drawn_turn(rng, 0.8, 30), 10.0, 10.0) for _ in range(4)]
        median = named(contrasts(runs, resamples=100), "time to first token, median")
        hits += median.low <= 0.8 <= median.high
    assert hits >= 12


def test_worse_and_mixed_verdicts() -> None:
    worse = Contrast("e2e", "s", 1.0, 2.0, 2.0, 1.8, 2.2, less_is_better=True)
    more = Contrast("tokens", "/s", 1.0, 2.0, 2.0, 1.8, 2.2, less_is_better=False)
    small = Contrast("x", "s", 1.0, 1.01, 1.01, 1.005, 1.02, less_is_better=True)
    assert [one.finding for one in (worse, more, small)] == [
        ComparisonFinding.WORSE,
        ComparisonFinding.BETTER,
        ComparisonFinding.SAME,
    ]
    assert verdict([worse], "a", "b", 3) == "On this load b is worse than a: e2e +100% (95%: +80% to +120%)."
    assert "b is better than a in tokens +100%" in verdict([worse, more], "a", "b", 3)
    assert "fewer than 3 rounds" in verdict([worse], "a", "b", 2)


def test_only_requests_that_both_served_are_compared() -> None:
    base, other = [served(first=1.0), failed()], [served(first=2.0)]
    assert (
        named(contrasts([Round(base, other, 1.0, 1.0)], resamples=20), "time to first token, median").ratio
        == 2.0
    )


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(1).normal(size=37)
    for share in (0.0, 0.5, 0.95, 1.0):
        assert _quantile(share)(values) == pytest.approx(np.percentile(values, 100 * share))


def test_nothing_served_is_said() -> None:
    found = contrasts([Round([failed()], [failed()], 1.0, 1.0)])
    assert found == []
    assert verdict(found, "agg", "disagg", 3).startswith("Nothing can be said")


def test_throughput_is_of_rounds() -> None:
    found = contrasts(
        [Round(drawn_turn(random.Random(1), 1.0), drawn_turn(random.Random(1), 1.0), 10.0, 5.0)] * 3,
        resamples=50,
    )
    assert named(found, "output tokens per second").ratio == pytest.approx(2.0)
    assert named(found, "output tokens per second").finding is ComparisonFinding.BETTER


EVIL = "<script>alert(1)</script>&\"'"


def turn(first: float, count: int = 6) -> list[LoadRecord]:
    return [served(0.1 * n, first + 0.01 * n, conversation=n) for n in range(count)]


def comparison(
    base: list[LoadRecord], other: list[LoadRecord], text: str = "m", rounds: int = 3
) -> Comparison:
    about = About("http://x", text, text, 7, "token ids", "then", (f"note {text}",))
    reports = {
        name: make_report(records, about, Slo.parse("ttft=1"), {})
        for name, records in (("agg", base), ("disagg", other))
    }
    return Comparison.of("agg", "disagg", [Round(base, other, 2.0, 1.0)] * rounds, [reports] * rounds)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_has_the_verdict_with_its_interval_and_both_distributions() -> None:
    found = comparison(turn(1.0), turn(0.5))
    page = comparison_page(found)
    assert "disagg is better than agg" in found.verdict
    assert found.verdict in page
    assert re.search(r"<td>time to first token, median</td>.*?<td>0\.51</td><td>0\.5\d to 0\.5\d</td>", page)
    for figure in ("time to first token", "between tokens", "per output token", "end to end"):
        assert f"<td>{figure}, agg</td>" in page
        assert f"<td>{figure}, disagg</td>" in page
    assert "disagg: 18 of 18 requests served, 18 within the limits" in page
    assert page.count("note m") == 1


def test_every_plot_is_well_formed_with_a_line_for_each() -> None:
    plots = re.findall(r"<svg.*?</svg>", comparison_page(comparison(turn(1.0), turn(0.5))), re.DOTALL)
    assert len(plots) == 5
    for one in plots:
        ElementTree.fromstring(one)
    assert all(one.count("<polyline") == 2 for one in plots[1:])


def test_what_served_nothing_still_has_a_page() -> None:
    page = comparison_page(comparison([failed()], [failed()], rounds=1))
    assert "Nothing can be said" in page
    assert "agg: 0 of 1 requests served, 0 within the limits (failed: HTTP 429)" in page


def test_it_takes_nobodys_word_for_markup_and_loads_nothing() -> None:
    page = comparison_page(comparison([*turn(1.0), failed(EVIL)], turn(0.5), EVIL))
    tags = Tags(page)
    assert EVIL not in page
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.found}
    assert not any("src" in attributes or "href" in attributes for _, attributes in tags.found)
    assert "http" not in re.sub(r'xmlns="[^"]+"', "", page)


@pytest.mark.parametrize(
    ("low", "ratio", "high", "color"),
    [
        (0.4, 0.5, 0.6, "#4b9b5f"),
        (1.8, 2.0, 2.2, "#c0392b"),
        (0.9, 1.0, 1.1, "#777777"),
        (0, 9, 99, "#777777"),
    ],
)
def test_an_interval_is_drawn_inside_the_plot_in_the_colour_of_its_finding(
    low: float, ratio: float, high: float, color: str
) -> None:
    one = Contrast("ttft", "s", 1.0, ratio, ratio, low, high, less_is_better=True)
    drawn = interval_plot("t", "x", [ratio_row(one)])
    ElementTree.fromstring(drawn)
    places = [float(x) for x in re.findall(r'(?:x1|x2|cx)="([\d.]+)"', drawn)]
    assert all(230 <= place <= 704 for place in places)
    assert f'fill="{color}"' in drawn
