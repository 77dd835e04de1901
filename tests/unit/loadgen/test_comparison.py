"""Two clusters on one page: what is said of them, and that the page needs nothing else."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from llmserve.loadgen.comparison import Comparison
from llmserve.loadgen.comparison_page import comparison_page
from llmserve.loadgen.contrast import Contrast, Round
from llmserve.loadgen.ratio_plot import ratio_plot
from llmserve.loadgen.record import Record
from llmserve.loadgen.report import About, Slo, make_report
from tests.unit.loadgen.records import failed, served

EVIL = "<script>alert(1)</script>&\"'"


def turn(first: float, count: int = 6) -> list[Record]:
    return [served(0.1 * n, first + 0.01 * n, conversation=n) for n in range(count)]


def comparison(base: list[Record], other: list[Record], text: str = "m", rounds: int = 3) -> Comparison:
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
    drawn = ratio_plot("t", [one], "x")
    ElementTree.fromstring(drawn)
    places = [float(x) for x in re.findall(r'(?:x1|x2|cx)="([\d.]+)"', drawn)]
    assert all(230 <= place <= 696 for place in places)
    assert f'fill="{color}"' in drawn
